"""How many workers share a GPU while merges are scored, and what each needs of its memory.

A run and its plan ask the same.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from apgd.data.cache import cache_root
from apgd.files import content_key, write_json
from apgd.suites import Suite
from tune.cluster import Cluster, scorers_per_gpu
from tune.experiment import Experiment, scoring_bytes
from tune.planning.devices import DEVICES

_CONTEXT_BYTES = 600 * 2**20
"""Of a process's GPU memory, what CUDA and its libraries take beside torch's tensors."""
_MARGIN = 1.15


@dataclass(frozen=True)
class Sharing:
    """What scoring takes of GPUs.

    Args:
        calculated: memory in bytes that a worker needs, where none was measured.
        scored: suite and methods, by which measured memory is remembered.
        share: workers that share a GPU; as many as fit, where None.
        most: more workers than that would have nothing to score.
    """

    calculated: int
    scored: tuple[str, ...] = ()
    share: int | None = None
    most: int = 10_000

    def needed(self, devices: Iterable[str]) -> tuple[int, str]:
        """Memory in bytes that a worker needs on such GPUs, and how that is known."""
        return max(map(self._needed, devices), default=(self.calculated, "calculated"))

    def _needed(self, device: str) -> tuple[int, str]:
        measured = _read(self._memory(device))
        return (self.calculated, "calculated") if measured is None else (measured, "measured")

    def cut(self, cluster: Cluster, free_bytes: int | None, needed_bytes: int) -> Cluster:
        """The workers of a cluster that score: several on a GPU where its memory allows.

        Args:
            cluster: with one worker on each GPU, or without any.
            free_bytes: memory of a GPU; not known where None.
            needed_bytes: what a worker needs of it.
        """
        if not cluster.gpus:
            return cluster
        fitting = 1
        if free_bytes is not None:
            fitting = scorers_per_gpu(free_bytes, needed_bytes, cluster.cpus // cluster.gpus)
        share = self.share or fitting
        return replace(
            cluster,
            workers=min(cluster.workers * share, self.most),
            per_gpu=share,
            threads_per_worker=max(1, cluster.threads_per_worker // share),
        )

    def remember(self, device: str, peak_bytes: int) -> None:
        """Note what a worker's tensors took at most, for the next run."""
        taken = int(_MARGIN * peak_bytes) + _CONTEXT_BYTES
        path = self._memory(device)
        if taken > (_read(path) or 0):
            write_json(path, {"bytes": taken})

    def _memory(self, device: str) -> Path:
        # Drivers, Ray and plans have names of their own for a kind of GPU.
        kind = next((kind.name for kind in DEVICES.values() if kind.is_named(device)), device)
        key = content_key([*self.scored, kind])
        return cache_root() / "scoring_memory" / f"{key}.json"


def sharing_of(experiment: Experiment, suite: Suite) -> Sharing:
    """What scoring an experiment's merges takes of GPUs."""
    return Sharing(
        scoring_bytes(suite),
        scored=(suite.name, *sorted(experiment.methods)),
        share=experiment.scorers_per_gpu,
        # Trials of every search at a time, and later a published and a tuned row of each method.
        most=len(experiment.methods) * experiment.seeds * max(2, experiment.at_once),
    )


def _read(path: Path) -> int | None:
    """The measured memory in a file, None where there is none."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return measured if isinstance(measured, int) and measured > 0 else None
