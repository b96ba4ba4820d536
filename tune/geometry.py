"""Merges held against their task vectors, as files of the run folder: `geometry/<key>.json`.

The key is that of the evaluation's record, so a file belongs to exactly one row and seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apgd.analysis import DeltaLayer, ExpertLayer, delta_layer, expert_layer
from apgd.errors import DamagedError, InputError
from apgd.files import read_sealed, write_sealed
from apgd.methods import methods
from apgd.source import source_hash
from apgd.suites import suites
from apgd.task_vectors import TaskVectors
from tune.evaluators import Evaluator, ScoreJob
from tune.references import EXPERTS

_CODE = ("apgd.analysis",)


def geometry_path(run_dir: Path, key: str) -> Path:
    """Where the figures of one row and seed are, by the key of its evaluation."""
    return run_dir / "geometry" / f"{key}.json"


def measure(evaluator: Evaluator, job: ScoreJob) -> None:
    """Measure a seed's task vectors (for the row of experts) or a merge, and write the figures."""
    workload = evaluator.workload
    suite = suites[workload.suite]
    base = suite.base_path()
    vectors = TaskVectors(base, evaluator.expert_files(job.seed), suite.is_merged, keep=False)
    layers: list[ExpertLayer] | list[DeltaLayer]
    if job.method == EXPERTS:
        layers = [expert_layer(name, vectors[name]) for name in vectors.names]
    else:
        merged = evaluator.merged(job)
        params = methods[job.method].parse(dict(job.params))
        layers = [
            delta_layer(
                name, vectors[name], merged[name].cpu().float() - vectors.base[name].float(), params
            )
            for name in vectors.names
        ]
    write_geometry(workload.run_dir, job.key(workload), job.method, vectors.experts, layers)


def write_geometry(
    run_dir: Path,
    key: str,
    method: str,
    experts: Sequence[str],
    layers: Sequence[ExpertLayer] | Sequence[DeltaLayer],
) -> None:
    """Write the figures of one row and seed.

    Args:
        run_dir: the run folder.
        key: that of the row's evaluation.
        method: the row's method, or `experts`, whose layers are of the other kind.
        experts: tasks, in the order of the figures.
        layers: by matrix.
    """
    value = {
        "code": source_hash(*_CODE),
        "method": method,
        "experts": list(experts),
        "layers": [asdict(layer) for layer in layers],
    }
    write_sealed(geometry_path(run_dir, key), value)


def is_measured(run_dir: Path, key: str) -> bool:
    """Whether the figures of one row and seed are there, and were made by this code."""
    path = geometry_path(run_dir, key)
    try:
        found = read_sealed(path)
        return bool(found["code"] == source_hash(*_CODE))
    except (FileNotFoundError, DamagedError, KeyError):
        return False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one file; of the two kinds of layers one is there."""

    experts: tuple[str, ...]
    """Tasks, in the order of the figures."""
    of_experts: tuple[ExpertLayer, ...] = ()
    of_merge: tuple[DeltaLayer, ...] = ()


def read_geometry(run_dir: Path, key: str) -> Measured | None:
    """What `measure` wrote for the evaluation with that key, if it did.

    Raises:
        InputError: where the file is of another version.
    """
    path = geometry_path(run_dir, key)
    if not path.exists():
        return None
    try:
        found = read_sealed(path)
        experts = tuple(found["experts"])
        if found["method"] == EXPERTS:
            of_experts = tuple(_expert_layer(layer) for layer in found["layers"])
            return Measured(experts=experts, of_experts=of_experts)
        of_merge = tuple(
            DeltaLayer(**{**layer, "products": tuple(layer["products"])})
            for layer in found["layers"]
        )
        return Measured(experts=experts, of_merge=of_merge)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} must hold figures of this version, but: {error!r}") from error


def _expert_layer(layer: Mapping[str, Any]) -> ExpertLayer:
    tables = {name: tuple(map(tuple, layer[name])) for name in ("products", "overlaps")}
    lists = {name: tuple(layer[name]) for name in ("shape", "shared")}
    return ExpertLayer(**{**layer, **tables, **lists})
