"""An experiment: a complete set of choices, whose fields are the command line."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apgd.checkpoints import open_weights
from apgd.errors import InputError
from apgd.files import content_key, write_json
from apgd.methods import methods
from apgd.source import source_hash
from apgd.suites import FinetuneSettings, Suite, suites
from apgd.task_vectors import TaskVectors

_TRACKING_SCHEMES = ("sqlite://", "postgresql://", "mysql://", "http://", "https://")
_EXPERIMENT_FILE = "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Fine-tune experts, merge them, search the merge's parameters, evaluate, report."""

    suite: str = "mini_vision"
    """Name of the suite; `apgd suites` lists them."""
    methods: tuple[str, ...] = ("weight_averaging", "task_arithmetic", "ties", "doge_ta")
    """Merge methods to compare; `apgd methods` lists them."""
    seeds: int = 1
    """Number of seeds, each with its own fine-tuning and its own search (seeds 0, 1, ...)."""
    trials: int = 24
    """Trials of every search (one per method that has parameters, and seed), the published
    settings included."""
    smoke: bool = False
    """Everything tiny: all stages in under a minute, figures without meaning."""
    run_dir: Path | None = None
    """Folder of this run's results; by default one below `runs`, named after the settings."""
    experts_dir: Path = Path("runs/experts")
    """Folder of fine-tuned experts, shared by all runs. On a cluster of several machines this and
    the run folder must be on storage that all of them see."""
    tracking_uri: str | None = None
    """MLflow server (`http://...`) or database (`sqlite:///...`); by default a database in the run
    folder."""
    sync: bool = False
    """Only send to MLflow what it does not have yet of a run that is finished or interrupted."""
    address: str | None = None
    """Address of a Ray cluster, or `local` to start Ray on this machine; by default the cluster
    that runs on this machine is joined, and Ray is started where there is none."""
    cpus: int | None = None
    """CPUs to use when Ray is started on this machine; all by default."""
    dashboard: bool = False
    """Serve Ray's dashboard on localhost while running (when Ray is started on this machine)."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        for name, low in (("seeds", 1), ("trials", 1)):
            value = getattr(self, name)
            if value < low:
                raise InputError(f"{name} must be at least {low}, but got {value}")
        if self.cpus is not None and self.cpus < 1:
            raise InputError(f"cpus must be at least 1, but got {self.cpus}")
        if not self.methods:
            raise InputError("methods must name at least one merge method, but got none")
        for name in self.methods:
            _ = methods[name]
        if len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods must not repeat, but got {', '.join(self.methods)}")
        _ = suites[self.suite]
        if self.tracking_uri is not None and not self.tracking_uri.startswith(_TRACKING_SCHEMES):
            raise InputError(
                f"tracking-uri must start with one of {', '.join(_TRACKING_SCHEMES)}, "
                f"but got {self.tracking_uri!r}"
            )

    @property
    def effective_trials(self) -> int:
        """Trials per search, cut down in a smoke run."""
        return min(self.trials, 3) if self.smoke else self.trials

    @property
    def limit(self) -> int | None:
        """Examples of each split that are scored; all where None."""
        return 60 if self.smoke else None

    @property
    def corruption_limit(self) -> int:
        """Test examples of each corrupted task that are shown under every corruption."""
        return 60 if self.smoke else 500

    def finetune_settings(self, suite: Suite) -> FinetuneSettings:
        """How experts are fine-tuned; a few steps in a smoke run."""
        if not self.smoke:
            return suite.finetune
        return replace(suite.finetune, steps=6, batch_size=16, checkpoint_every=3)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes results of two runs belong in one folder.

        Seeds, methods and everything about where a run takes place are left out: more of them
        extend a run.
        """
        return {
            "name": "full_repro",
            "suite": self.suite,
            "trials": self.effective_trials,
            "smoke": self.smoke,
            "code": source_hash("apgd"),
        }

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        smoke = "-smoke" if self.smoke else ""
        return Path("runs") / f"full_repro-{self.suite}{smoke}-{content_key(self.identity)}"

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def check(experiment: Experiment) -> None:
    """Check everything that can be checked before work starts, and claim the run folder.

    Raises:
        InputError: where a folder cannot be written, belongs to another experiment, or has no room,
            or the base model does not load.
    """
    suite = suites[experiment.suite]
    folder = experiment.folder
    base = open_weights(suite.base_path(), f"the base of suite {suite.name}")
    TaskVectors(suite.base_path(), {"base": suite.base_path()}, suite.is_merged, keep=False)
    claimed = _read_identity(folder)
    if claimed is not None and claimed != experiment.identity:
        raise InputError(_difference(folder, claimed, experiment.identity))
    if claimed is None and folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"a run folder must be new or that of the same experiment, but {folder} holds other "
            f"files; choose another --run-dir"
        )
    for path in (folder, experiment.experts_dir):
        _make_writable(path)
    size = sum(
        4 * _product(base.shape(name)) for name in base.names()
    )  # one model, float32, in bytes
    needed = size * (len(suite.tasks) * experiment.seeds + 6) + 200 * 2**20
    free = shutil.disk_usage(experiment.experts_dir).free
    if free < needed:
        raise InputError(
            f"the run needs about {needed / 2**20:.0f} MiB below {experiment.experts_dir}, "
            f"but only {free / 2**20:.0f} MiB are free"
        )
    if claimed is None:
        write_json(folder / _EXPERIMENT_FILE, experiment.identity)


def merged_rank(suite: Suite) -> int:
    """The smallest min(m, n) over the matrices that a suite merges."""
    base = suite.base_path()
    return TaskVectors(base, {"base": base}, suite.is_merged, keep=False).smallest_rank


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _make_writable(path: Path) -> None:
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"folders of results must be writable, but {path} is not: {error.strerror}"
        ) from error


def _read_identity(folder: Path) -> dict[str, Any] | None:
    path = folder / _EXPERIMENT_FILE
    if not path.exists():
        return None
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be JSON, but is not: {error}") from error
    if not isinstance(identity, dict):
        raise InputError(f"{path} must hold a JSON object, but holds {identity!r}")
    return identity


def _difference(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    differing = [
        f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
    return (
        f"a run folder holds one experiment, but {folder} holds another: "
        f"{'; '.join(differing)}; choose another --run-dir"
    )
