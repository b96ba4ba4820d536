"""What runs where: CPUs prepare data, a whole GPU trains an expert, parts of a GPU score merges.

Without GPUs the same workers do everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from apgd.suites import Suite
from tune.cluster import Cluster, plural
from tune.experiment import Experiment
from tune.workers.dispatch import Say
from tune.workers.introductions import Introduction
from tune.workers.pool import WorkerPool
from tune.workers.sharing import Sharing, sharing_of

_PREPARERS = 8


def place(experiment: Experiment, suite: Suite, cluster: Cluster, say: Say) -> "Placement":
    """Where the work of an experiment is done."""
    return Placement(
        cluster,
        say,
        experiment.folder,
        sharing_of(experiment, suite),
        most_training=(len(suite.tasks) + 1) * experiment.seeds,
    )


class Placement:
    """The worker pools of a run, one for each kind of work.

    Args:
        cluster: what there is.
        say: called with one sentence for whatever happens to a worker.
        run_dir: the run folder, which every worker must see.
        sharing: what scoring takes of GPUs.
        most_training: more workers than that would have nothing to fine-tune.
    """

    def __init__(
        self,
        cluster: Cluster,
        say: Say,
        run_dir: Path,
        sharing: Sharing,
        *,
        most_training: int = 10_000,
    ) -> None:
        self._cluster, self._say, self._run_dir = cluster, say, run_dir
        self._sharing, self._most_training = sharing, most_training
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
        gpus = _gpus(self._cluster.gpus)
        needed, how = self._sharing.needed(sorted({device for device, _free in gpus}))
        free = min(free for _device, free in gpus)
        shared = self._sharing.cut(self._cluster, free, needed)
        if shared.per_gpu > 1:
            self._say(
                f"{plural(shared.per_gpu, 'worker')} share a GPU for merges and scores: "
                f"{needed / 2**30:.1f} GiB each ({how}) of {free / 2**30:.1f} GiB"
            )
        with self._pool(shared) as pool:
            yield pool
            for device, peak in pool.peaks().items():
                self._sharing.remember(device, peak)

    @contextmanager
    def _pool(self, cluster: Cluster) -> Iterator[WorkerPool]:
        if not self._cluster.gpus:
            if self._everything is None:
                self._everything = WorkerPool(self._cluster, self._say, self._run_dir)
                self.met = self._everything.start()
            yield self._everything
            return
        # A peak may hold what was only cached: it decides how many share, and refuses nobody who
        # has what is calculated.
        pool = WorkerPool(
            cluster, self._say, self._run_dir,
            lambda device: min(self._sharing.calculated, self._sharing.needed([device])[0]),
        )  # fmt: skip
        try:
            yield pool
        finally:
            self.met = pool.met or self.met
            pool.close()


def _gpus(count: int) -> list[tuple[str, int]]:
    """Kind and free memory in bytes of every GPU; none of them may be in use by Ray."""

    def look() -> tuple[str, int]:
        return torch.cuda.get_device_name(), int(torch.cuda.mem_get_info()[0])

    asked: Any = ray.remote(num_gpus=1, num_cpus=0)(look)
    found: list[tuple[str, int]] = ray.get([asked.remote() for _ in range(count)])
    return found
