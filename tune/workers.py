"""Workers: Ray actors pinned to one GPU or one CPU slot that render, train and score.

A worker lives as long as the run, so models, data and task vectors are loaded once. It is restarted
when it is killed, and its job is begun again: every job either resumes from its own checkpoint or
is short.
"""

import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from apgd import numerics
from apgd.data import Split
from apgd.errors import InputError
from apgd.finetune import ExpertSpec, finetune
from apgd.methods import Value
from apgd.projective import task_bases
from apgd.source import source_hash
from apgd.suites import suites
from apgd.training_statistics import StatisticSpec, collect_to
from tune.cluster import Cluster
from tune.dispatch import Running, dispatch
from tune.evaluators import Evaluator, ScoreJob, Workload
from tune.experiment import run_id
from tune.geometry import measure
from tune.remote_worker import RemoteWorker
from tune.studies import Study
from tune.trials import Trial, TrialScorer

_ATTEMPTS = 5  # that follow on the first, where a job's worker dies over it
_POLL_SECONDS = 0.5
_START_SECONDS = 180


def assigned_device() -> str:
    """The torch device that Ray assigned to this process.

    Raises:
        RuntimeError: where a GPU was assigned but another number of GPUs is visible, which would
            let two workers share one.
    """
    gpus = ray.get_gpu_ids()
    if not gpus:
        return "cpu"
    visible = torch.cuda.device_count()
    if visible != 1:
        raise RuntimeError(f"one GPU must be visible to a GPU worker, but {visible} are")
    return "cuda:0"


@dataclass(frozen=True)
class Introduction:
    """Where a worker is, and what it sees from there."""

    machine: str
    device: str
    free_bytes: int | None
    """Free memory of its GPU; None on a CPU."""
    code: str
    """Hash of the source of apgd and tune that it runs."""
    run_id: str | None
    """Identifier of the run folder as seen from there; None where it sees none."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common, put into Ray's object store once."""

    studies: tuple[Study, ...]
    keys: tuple[str, ...]
    """The studies' keys, see `Study.key`."""
    workload: Workload
    bases: dict[int, ray.ObjectRef[dict[str, list[np.ndarray]]]]
    """By seed and matrix: every expert's leading left singular vectors, (m, k) float32. All workers
    of a node read the same memory."""


def _as_tensors(arrays: dict[str, list[np.ndarray]]) -> dict[str, list[Tensor]]:
    """Views of arrays that lie in shared memory, which is read-only; nobody writes to a basis."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: [torch.from_numpy(a) for a in of] for name, of in arrays.items()}


class Worker:
    """What runs in a worker process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        numerics.configure(threads)  # before anything touches the GPU
        self._device = assigned_device()
        self._progress = (0, 0)
        self._evaluator: Evaluator | None = None
        self._trials: TrialScorer | None = None
        self._searched: tuple[Workload, tuple[str, ...]] | None = None

    def introduce(self, run_dir: Path) -> Introduction:
        """What the driver must know before it hands out work."""
        free = torch.cuda.mem_get_info()[0] if self._device != "cpu" else None
        return Introduction(
            machine=platform.node(),
            device=torch.cuda.get_device_name() if free is not None else "CPU",
            free_bytes=free,
            code=source_hash("apgd", "apgd.methods", "tune"),
            run_id=run_id(run_dir) if run_dir.exists() else None,
        )

    def prepare(self, suite: str, task: str, split: Split) -> str:
        """Make a split's examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].examples(task, split).sha256

    def prepare_corrupted(self, suite: str, task: str, corruption: str) -> str:
        """Make a task's corrupted test examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].corrupted_examples(task, corruption, sys.maxsize).sha256

    def train(self, suite: str, spec: ExpertSpec, root: Path) -> dict[str, Any]:
        """Fine-tune an expert, or go on with it; its manifest."""
        numerics.configure(self._threads)
        self._progress = (0, spec.settings.steps)

        def report(done: int, total: int) -> None:
            self._progress = (done, total)

        expert = finetune(suites[suite], spec, root, device=self._device, report=report)
        return expert.manifest

    def collect(self, suite: str, spec: StatisticSpec, weights: Path, root: Path) -> Path:
        """Compute an expert's training statistic, unless it is there; its file."""
        numerics.configure(self._threads)
        return collect_to(root, spec, suites[suite], weights, device=self._device)

    def score(self, workload: Workload, job: ScoreJob) -> float:
        """Score a merge or a reference row and put the record on disk; its mean accuracy."""
        numerics.configure(self._threads)
        self._trials = None  # a search is over, and its memory is wanted
        return self._evaluator_of(workload).run(job)

    def measure(self, workload: Workload, job: ScoreJob) -> None:
        """Hold the task vectors of a seed, or a merge against them, and write down what comes."""
        numerics.configure(self._threads)
        measure(self._evaluator_of(workload), job)

    def decompose(self, workload: Workload, seed: int, name: str, count: int) -> list[np.ndarray]:
        """Leading left singular vectors of a matrix's task vectors, (m, at most `count`) each."""
        numerics.configure(self._threads)
        tau = self._evaluator_of(workload).task_vectors(seed)[name]
        return [basis.cpu().numpy() for basis in task_bases(tau, count)]

    def score_trial(
        self,
        shared: Shared,
        study: int,
        number: int,
        params: dict[str, Value],
        rung: int,
    ) -> tuple[float, ...]:
        """Judge a rung of one trial of a search; the objectives of its best setting."""
        numerics.configure(self._threads)
        evaluator = self._evaluator_of(shared.workload)
        if self._trials is None or self._searched != (shared.workload, shared.keys):
            self._trials = TrialScorer(evaluator)
            self._searched = (shared.workload, shared.keys)
            for seed, arrays in shared.bases.items():
                self._trials.share_bases(seed, _as_tensors(ray.get(arrays)))
        trial = Trial(shared.studies[study], shared.keys[study], number, tuple(params.items()))
        return self._trials.rung(trial, rung).values

    def _evaluator_of(self, workload: Workload) -> Evaluator:
        if self._evaluator is None or self._evaluator.workload != workload:
            self._evaluator = Evaluator(workload, self._device)
        return self._evaluator

    def progress(self) -> tuple[int, int]:
        """Steps done and total of the training under way."""
        return self._progress


def all_answers(asked: list[Any]) -> list[Any]:
    """What workers that are just starting answer.

    Raises:
        InputError: where one does not start in time.
    """
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=_START_SECONDS)
    if silent:
        raise InputError(
            f"{len(asked)} workers must start within {_START_SECONDS} s, but only "
            f"{len(answered)} did; are the cluster's CPUs or GPUs in use by something else?"
        )
    answers: list[Any] = ray.get(asked)
    return answers


@dataclass(frozen=True)
class Job:
    """One call of a worker's method."""

    method: str
    arguments: tuple[Any, ...]


class WorkerPool:
    """The workers of a run.

    Args:
        cluster: how many workers there are and what each owns.
    """

    def __init__(self, cluster: Cluster) -> None:
        options: dict[str, Any] = {
            # A worker always comes back; a job that no worker survives is given up.
            "max_restarts": -1,
            "max_task_retries": _ATTEMPTS,
            "concurrency_groups": {"watch": 1},
            **cluster.worker_resources,
        }
        remote: Any = ray.remote(**options)(RemoteWorker)
        self.handles: list[ActorHandle[Any]] = [
            remote.remote(cluster.threads_per_worker) for _ in range(cluster.workers)
        ]

    def introduce(self, run_dir: Path, needed_bytes: int) -> list[Introduction]:
        """Wait for the workers, and check that each can do its work.

        Args:
            run_dir: the run folder, which every worker must see.
            needed_bytes: free GPU memory that a worker needs.

        Raises:
            InputError: where a worker does not start in time, does not see the run folder, runs
                other code, or has too little GPU memory.
        """
        asked: list[Any] = [worker.introduce.remote(run_dir.resolve()) for worker in self.handles]
        met: list[Introduction] = all_answers(asked)
        expected, code = run_id(run_dir), source_hash("apgd", "apgd.methods", "tune")
        for worker in met:
            if worker.run_id != expected:
                raise InputError(
                    f"the run folder must be on storage that all machines share, but "
                    f"{worker.machine} does not see {run_dir.resolve()}"
                )
            if worker.code != code:
                raise InputError(
                    f"all machines must run the same code, but {worker.machine} has {worker.code} "
                    f"and the driver {code}; bring it up to date with `ray up`"
                )
            if worker.free_bytes is not None and worker.free_bytes < needed_bytes:
                raise InputError(
                    f"a worker needs about {needed_bytes / 2**30:.1f} GiB of GPU memory, but "
                    f"{worker.device} of {worker.machine} has "
                    f"{worker.free_bytes / 2**30:.1f} GiB free"
                )
        return met

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_done: Callable[[int, Any], None] | None = None,
        on_progress: Callable[[dict[int, tuple[int, int]]], None] | None = None,
    ) -> list[Any]:
        """Run jobs on the workers, in the order given; their results in the same order.

        Args:
            jobs: what to run.
            on_done: called in this process with a job's index and result as it finishes.
            on_progress: called about twice a second with the steps done and their total of the
                jobs under way, by index.

        Raises:
            Exception: what the first failing job raised; the other jobs' results are not lost
                where jobs keep them on disk.
        """
        results: list[Any] = [None] * len(jobs)

        def start(worker: ActorHandle[Any], index: int) -> ray.ObjectRef[Any]:
            reference: ray.ObjectRef[Any] = getattr(worker, jobs[index].method).remote(
                *jobs[index].arguments
            )
            return reference

        def poll(running: Running) -> None:
            if on_progress is not None:
                on_progress(_poll(running))

        for index, result in dispatch(self.handles, start, len(jobs), on_wait=poll):
            results[index] = result
            if on_done is not None:
                on_done(index, result)
        return results


def _poll(running: Running) -> dict[int, tuple[int, int]]:
    asked: dict[Any, int] = {
        worker.progress.options(concurrency_group="watch").remote(): index
        for index, worker in running.values()
    }
    # A worker that is just being restarted does not answer in time, and is left out.
    answered: list[Any]
    answered, _ = (
        ray.wait(list(asked), num_returns=len(asked), timeout=_POLL_SECONDS) if asked else ([], [])
    )
    progress = {}
    for reference in answered:
        try:
            progress[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayActorError:
            continue
    return progress
