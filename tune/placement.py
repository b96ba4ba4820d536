"""What runs where: CPUs prepare data, a whole GPU trains an expert, parts of a GPU score merges.

Without GPUs the same workers do everything.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from apgd.data.cache import cache_root
from apgd.files import content_key, write_json
from apgd.suites import Suite
from tune.cluster import Cluster, plural, scorers_per_gpu
from tune.dispatch import Say
from tune.experiment import Experiment, scoring_bytes
from tune.workers import Introduction, WorkerPool

_PREPARERS = 8
_CONTEXT_BYTES = 600 * 2**20
"""Of a process's GPU memory, what CUDA and its libraries take beside torch's tensors."""
_MARGIN = 1.15


def place(experiment: Experiment, suite: Suite, cluster: Cluster, say: Say) -> "Placement":
    """Where the work of an experiment is done."""
    return Placement(
        cluster,
        say,
        experiment.folder,
        scoring_bytes(suite),
        scored=(suite.name, *sorted(experiment.methods)),
        share=experiment.scorers_per_gpu,
        most_training=(len(suite.tasks) + 1) * experiment.seeds,
        # Trials of every search at a time, and later a published and a tuned row of each method.
        most_scoring=len(experiment.methods) * experiment.seeds * max(2, experiment.at_once),
    )


class Placement:
    """The worker pools of a run, one for each kind of work.

    Args:
        cluster: what there is.
        say: called with one sentence for whatever happens to a worker.
        run_dir: the run folder, which every worker must see.
        scoring_bytes: GPU memory that scoring takes, calculated.
        scored: suite and methods, by which measured memory is remembered.
        share: workers that share a GPU while merges are scored; as many as fit, where None.
        most_training: more workers than that would have nothing to fine-tune.
        most_scoring: more than that would have nothing to score.
    """

    def __init__(
        self,
        cluster: Cluster,
        say: Say,
        run_dir: Path,
        scoring_bytes: int,
        *,
        scored: Sequence[str] = (),
        share: int | None = None,
        most_training: int = 10_000,
        most_scoring: int = 10_000,
    ) -> None:
        self._cluster, self._say, self._run_dir = cluster, say, run_dir
        self._calculated, self._scored, self._share = scoring_bytes, list(scored), share
        self._most_training, self._most_scoring = most_training, most_scoring
        self._everything: WorkerPool | None = None
        self.met: list[Introduction] = []
        """The workers that were started last."""

    @contextmanager
    def preparing(self) -> Iterator[WorkerPool]:
        """Workers that make data ready: on CPUs, which Ray takes from machines without GPUs first.

        A machine with a cache of its own makes ready what it lacks when it first needs it.
        """
        cpus = replace(
            self._cluster,
            gpus=0,
            workers=max(1, min(self._cluster.cpus, _PREPARERS)),
            threads_per_worker=1,
        )
        with self._pool(cpus) as pool:
            yield pool

    @contextmanager
    def training(self) -> Iterator[WorkerPool]:
        """Workers that fine-tune: one on each GPU, which must have room to score afterwards."""
        workers = min(self._cluster.workers, self._most_training)
        with self._pool(replace(self._cluster, workers=workers)) as pool:
            yield pool

    @contextmanager
    def scoring(self) -> Iterator[WorkerPool]:
        """Workers that merge and score: several on a GPU where its memory allows."""
        if not self._cluster.gpus:
            with self._pool(self._cluster) as pool:
                yield pool
            return
        needed, how = max(map(self._needed_bytes, self._devices() or [""]))
        free = min(_free_gpu_bytes(self._cluster.gpus))
        share = self._share or scorers_per_gpu(
            free, needed, self._cluster.cpus // self._cluster.gpus
        )
        if share > 1:
            self._say(
                f"{plural(share, 'worker')} share a GPU for merges and scores: "
                f"{needed / 2**30:.1f} GiB each ({how}) of {free / 2**30:.1f} GiB"
            )
        shared = replace(
            self._cluster,
            workers=min(self._cluster.workers * share, self._most_scoring),
            per_gpu=share,
            threads_per_worker=max(1, self._cluster.threads_per_worker // share),
        )
        with self._pool(shared) as pool:
            yield pool
            self._remember(pool)

    @contextmanager
    def _pool(self, cluster: Cluster) -> Iterator[WorkerPool]:
        if not self._cluster.gpus:
            if self._everything is None:
                self._everything = WorkerPool(self._cluster, self._say, self._run_dir)
                self.met = self._everything.start()
            yield self._everything
            return
        pool = WorkerPool(
            cluster, self._say, self._run_dir, lambda device: self._needed_bytes(device)[0]
        )
        try:
            yield pool
        finally:
            self.met = pool.met or self.met
            pool.close()

    def _needed_bytes(self, device: str) -> tuple[int, str]:
        """Memory that a scoring worker needs on a kind of GPU, and how that is known."""
        measured = _read(self._memory(device))
        return (self._calculated, "calculated") if measured is None else (measured, "measured")

    def _devices(self) -> list[str]:
        """Kinds of GPU that were met."""
        return sorted({worker.device for worker in self.met if worker.free_bytes is not None})

    def _memory(self, device: str) -> Path:
        key = content_key([*self._scored, device])
        return cache_root() / "scoring_memory" / f"{key}.json"

    def _remember(self, pool: WorkerPool) -> None:
        """Note what scoring took at most, for the next run."""
        for device, peak in pool.peaks().items():
            taken = int(_MARGIN * peak) + _CONTEXT_BYTES
            path = self._memory(device)
            if taken > (_read(path) or 0):
                write_json(path, {"bytes": taken})


def _read(path: Path) -> int | None:
    """The measured memory in a file, None where there is none."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return measured if isinstance(measured, int) and measured > 0 else None


def _free_gpu_bytes(gpus: int) -> list[int]:
    """Free memory of every GPU, in bytes; none of them may be in use by Ray."""

    def free() -> int:
        return int(torch.cuda.mem_get_info()[0])

    asked: Any = ray.remote(num_gpus=1, num_cpus=0)(free)
    found: list[int] = ray.get([asked.remote() for _ in range(gpus)])
    return found
