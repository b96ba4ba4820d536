"""Workers: Ray actors pinned to a GPU, a part of one, or a CPU slot, that render, train and score.

A worker lives as long as its pool, so models, data and task vectors are loaded once. It is
restarted when it is killed, and its job is begun again: every job either resumes from its own
checkpoint or is short.
"""

import functools
import gc
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from apgd import numerics
from apgd.data import Split
from apgd.errors import InputError, MemoryFullError
from apgd.files import content_key
from apgd.finetune import ExpertSpec, finetune
from apgd.local_copies import local_weights
from apgd.machine import is_broken_gpu, is_out_of_memory
from apgd.methods import Value
from apgd.projective import task_bases
from apgd.source import library_versions, source_hash
from apgd.suites import suites
from apgd.training_statistics import StatisticSpec, collect_to
from tune.cluster import Cluster
from tune.dispatch import LOST, Actor, Crew, Patience, Reference, Running, Say
from tune.evaluators import Evaluator, ScoreJob, Workload
from tune.experiment import run_id
from tune.geometry import measure
from tune.libraries import LIBRARIES
from tune.remote_worker import RemoteWorker
from tune.studies import Study
from tune.trials import Trial, TrialScorer

Answer = TypeVar("Answer")
Given = ParamSpec("Given")

_ATTEMPTS = 6
_POLL_SECONDS = 0.5
_START_SECONDS = 180
_LATE_SECONDS = 30
"""Those that come later than the first by more than that join when they are there."""
_STALL_SECONDS = 600.0
"""A training that has made no step for so long is begun again by another worker."""
_FIRST_STEP_SECONDS = 6 * 3600.0
"""One whose first step takes so long is, too: data that a machine lacks is downloaded before it."""


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
    libraries: tuple[tuple[str, str], ...]
    """Names and versions of Python and of the libraries that results depend on."""
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


def own_code() -> str:
    """Hash of the source of apgd and tune that this process runs."""
    return source_hash("apgd", "apgd.methods", "tune")


def own_libraries() -> tuple[tuple[str, str], ...]:
    """Names and versions of Python and of the libraries that results depend on."""
    return (("python", platform.python_version()), *library_versions(*LIBRARIES))


def own_identity() -> str:
    """Hash of code and libraries, which is the same on all machines of a run."""
    return content_key([own_code(), own_libraries()])


def _ends_with_its_gpu(
    method: Callable[Concatenate["Worker", Given], Answer],
) -> Callable[Concatenate["Worker", Given], Answer]:
    """A method that ends the worker's process where the GPU does nothing more for it.

    A process that lives on would fail every call at once, and be the first that is free for the
    next one. One that ends is a loss like any: others do its work, and it is started again.
    """

    @functools.wraps(method)
    def call(self: "Worker", /, *given: Given.args, **named: Given.kwargs) -> Answer:
        try:
            return method(self, *given, **named)
        except RuntimeError as error:
            if not is_broken_gpu(error):
                raise
            sys.stderr.write(
                f"{self._device} of {platform.node()} does nothing more for process {os.getpid()}, "
                f"which ends itself: {error}\n"
            )
            sys.stderr.flush()
            os._exit(1)

    return call


class Worker:
    """What runs in a worker process.

    Args:
        threads: CPU threads that it may use.
        share: workers that share its GPU, of whose memory it takes one part of so many.
    """

    def __init__(self, threads: int, share: int = 1) -> None:
        self._threads = threads
        numerics.configure(threads)  # before anything touches the GPU
        self._device = assigned_device()
        self._part = 1 / share
        if share > 1 and torch.device(self._device).type == "cuda":
            torch.cuda.set_per_process_memory_fraction(self._part)
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
            code=own_code(),
            libraries=own_libraries(),
            run_id=run_id(run_dir) if (run_dir / "experiment.json").exists() else None,
        )

    def identify(self) -> tuple[str, str]:
        """Its machine, and `own_identity`: all that a search asks of one that comes back."""
        return platform.node(), own_identity()

    def prepare(self, suite: str, task: str, split: Split) -> str:
        """Make a split's examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].examples(task, split).sha256

    def prepare_corrupted(self, suite: str, task: str, corruption: str) -> str:
        """Make a task's corrupted test examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].corrupted_examples(task, corruption, sys.maxsize).sha256

    @_ends_with_its_gpu
    def train(self, suite: str, spec: ExpertSpec, root: Path) -> dict[str, Any]:
        """Fine-tune an expert, or go on with it; its manifest."""
        numerics.configure(self._threads)
        self._progress = (0, spec.settings.steps)

        def report(done: int, total: int) -> None:
            self._progress = (done, total)

        expert = finetune(suites[suite], spec, root, device=self._device, report=report)
        return expert.manifest

    @_ends_with_its_gpu
    def collect(self, suite: str, spec: StatisticSpec, weights: Path, root: Path) -> Path:
        """Compute an expert's training statistic, unless it is there; its file.

        Raises:
            InputError: where the expert is not the one that the statistic is of.
        """
        numerics.configure(self._threads)
        expert = local_weights(weights, spec.expert_sha256, f"expert {spec.task}")
        return collect_to(root, spec, suites[suite], expert, device=self._device)

    @_ends_with_its_gpu
    def score(self, workload: Workload, job: ScoreJob) -> float:
        """Score a merge or a reference row and put the record on disk; its mean accuracy."""
        numerics.configure(self._threads)
        self._trials = None  # a search is over, and its memory is wanted
        return self._with_room(lambda: self._evaluator_of(workload).run(job))

    @_ends_with_its_gpu
    def measure(self, workload: Workload, job: ScoreJob) -> None:
        """Hold the task vectors of a seed, or a merge against them, and write down what comes."""
        numerics.configure(self._threads)
        self._with_room(lambda: measure(self._evaluator_of(workload), job))

    @_ends_with_its_gpu
    def decompose(self, workload: Workload, seed: int, name: str, count: int) -> list[np.ndarray]:
        """Leading left singular vectors of a matrix's task vectors, (m, at most `count`) each."""
        numerics.configure(self._threads)
        tau = self._evaluator_of(workload).task_vectors(seed)[name]
        return [basis.cpu().numpy() for basis in task_bases(tau, count)]

    @_ends_with_its_gpu
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
        trial = Trial(shared.studies[study], shared.keys[study], number, tuple(params.items()))
        return self._with_room(lambda: self._trials_of(shared).rung(trial, rung).values)

    def _trials_of(self, shared: Shared) -> TrialScorer:
        evaluator = self._evaluator_of(shared.workload)
        if self._trials is None or self._searched != (shared.workload, shared.keys):
            self._trials = TrialScorer(evaluator)
            self._searched = (shared.workload, shared.keys)
            for seed, arrays in shared.bases.items():
                self._trials.share_bases(seed, _as_tensors(ray.get(arrays)))
        return self._trials

    def _with_room(self, act: Callable[[], Answer]) -> Answer:
        """Do something that needs a GPU's memory; once more without what is held, where it lacks.

        From then on no task vectors are held.

        Raises:
            MemoryFullError: where even then it does not fit.
        """
        try:
            return act()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold what was computed so far
        self._evaluator = self._trials = None
        self._part = 0.0
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()
        try:
            return act()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MemoryFullError(
                f"merges and scores do not fit into the memory of {self._device} of "
                f"{platform.node()}, which workers may share: --scorers-per-gpu 1 gives each GPU "
                f"to one ({reason})"
            ) from None

    def peak(self) -> tuple[str, int]:
        """Its device, and the most memory in bytes that tensors took there; 0 on a CPU."""
        if self._device == "cpu":
            return "CPU", 0
        return torch.cuda.get_device_name(), int(torch.cuda.max_memory_reserved())

    def _evaluator_of(self, workload: Workload) -> Evaluator:
        if self._evaluator is None or self._evaluator.workload != workload:
            self._evaluator = Evaluator(workload, self._device, self._part)
        return self._evaluator

    def progress(self) -> tuple[int, int]:
        """Steps done and total of the training under way."""
        return self._progress


@dataclass(frozen=True)
class Job:
    """One call of a worker's method."""

    method: str
    arguments: tuple[Any, ...]
    what: str = ""
    """What it does, for people: it follows on "while"."""
    trains: bool = False
    """Whether it writes checkpoints that it goes on from, so that only one worker may do it at a
    time, and reports steps."""

    @property
    def told(self) -> str:
        """What it does, for people."""
        return self.what or f"doing `{self.method}`"


class WorkerPool:
    """The workers of a run, or of some of its stages.

    They are started when there is something to do.

    Args:
        cluster: how many workers there are and what each owns.
        say: called with one sentence for whatever happens to a worker.
        run_dir: the run folder, which every worker must see; not checked where None.
        needed_bytes: free memory that a worker's GPU must have, by what kind of GPU it is.
        patience: how long is waited for workers and their answers.
        stall_seconds: a training that has made no step for so long is begun again, from its first
            step on.
        actor: the class of the workers; one that works, where None.
    """

    def __init__(
        self,
        cluster: Cluster,
        say: Say,
        run_dir: Path | None = None,
        needed_bytes: Callable[[str], int] = lambda _device: 0,
        *,
        patience: Patience | None = None,
        stall_seconds: float = _STALL_SECONDS,
        actor: type | None = None,
    ) -> None:
        self._cluster, self._say = cluster, say
        self._actor = actor
        self._run_dir, self._needed_bytes = run_dir, needed_bytes
        self._patience = patience or Patience()
        self._stall_seconds = stall_seconds
        self._crew: Crew | None = None
        self._met: dict[int, Introduction] = {}

    @property
    def handles(self) -> list[Actor]:
        """The actors, started where they are not yet."""
        return self._started().workers

    @property
    def met(self) -> list[Introduction]:
        """What those workers have said of themselves that were there so far."""
        return [self._met[number] for number in sorted(self._met)]

    def start(self) -> list[Introduction]:
        """Start the workers and wait for them; those that come later are checked then.

        Raises:
            InputError: where no worker starts in time, or one does not see the run folder, runs
                other code or libraries, or has too little GPU memory.
        """
        self._started()
        return self.met

    def _started(self) -> Crew:
        if self._crew is None:
            self._crew = self._start()
        return self._crew

    def _start(self) -> Crew:
        options: dict[str, Any] = {
            # A worker always comes back; what it did is begun again by its crew, which says so.
            "max_restarts": -1,
            "max_task_retries": 0,
            "concurrency_groups": {"watch": 1},
            **self._cluster.worker_resources,
        }
        remote: Any = ray.remote(**options)(self._actor or RemoteWorker)
        count, threads = self._cluster.workers, self._cluster.threads_per_worker
        handles = [remote.remote(threads, self._cluster.per_gpu) for _ in range(count)]
        if self._run_dir is None:
            return Crew(handles, say=self._say)
        folder, expected = self._run_dir.resolve(), run_id(self._run_dir)

        def admit(number: int, worker: Introduction) -> None:
            check_introduction(worker, folder, expected, self._needed_bytes(worker.device))
            self._met[number] = worker
            crew.name(number, worker.machine)

        crew = Crew(
            handles,
            arrive=lambda worker: _introduction(worker, folder),
            admit=admit,
            begin_away=True,
            say=self._say,
        )
        there = crew.gather(_START_SECONDS, _LATE_SECONDS)
        if not there:
            raise InputError(
                f"workers must start within {_START_SECONDS} s, but none of {count} did; are the "
                f"cluster's CPUs or GPUs in use by something else?"
            )
        if there < count:
            self._say(
                f"{there} of {count} workers have started; the others join when they are there"
            )
        return crew

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            for worker in self._crew.workers:
                ray.kill(worker)
            self._crew = None

    def peaks(self) -> dict[str, int]:
        """The most GPU memory that a worker's tensors took, in bytes, by kind of GPU."""
        if self._crew is None:
            return {}
        asked: list[Any] = [worker.peak.remote() for worker in self._crew.present]
        found: dict[str, int] = {}
        for answer in ray.wait(asked, num_returns=len(asked), timeout=_POLL_SECONDS)[0]:
            try:
                device, peak = ray.get(answer)
            except LOST:
                continue  # it was not the only one
            if peak:
                found[device] = max(peak, found.get(device, 0))
        return found

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_done: Callable[[int, Any], None] | None = None,
        on_progress: Callable[[dict[int, tuple[int, int]]], None] | None = None,
    ) -> list[Any]:
        """Run jobs on the workers, in the order given; their results in the same order.

        A job whose worker dies is begun again by another one, up to six times; one that takes far
        longer than the others is done by two workers, and the first answer counts.

        Args:
            jobs: what to run.
            on_done: called in this process with a job's index and result as it finishes.
            on_progress: called about twice a second with the steps done and their total of the
                jobs under way, by index.

        Raises:
            RuntimeError: where all workers are gone for too long, or a training stood still for too
                long six times.
            Exception: what the first failing job raised; the other jobs' results are not lost
                where jobs keep them on disk.
        """
        results: list[Any] = [None] * len(jobs)
        if not jobs:
            return results
        crew = self._started()
        trains = any(job.trains for job in jobs)
        watch = _Watch(jobs, self._stall_seconds, self._say)

        def start(worker: Actor, index: int) -> Reference:
            reference: Reference = getattr(worker, jobs[index].method).remote(
                *jobs[index].arguments
            )
            return reference

        def poll(running: Running) -> None:
            if on_progress is None and not trains:
                return
            progress = _poll(running)
            if on_progress is not None:
                on_progress(progress)
            if trains:
                watch.look(running, progress)

        for index, result in crew.dispatch(
            start,
            len(jobs),
            what=lambda index: jobs[index].told,
            attempts=_ATTEMPTS,
            patience=replace(self._patience, twice=None) if trains else self._patience,
            on_wait=poll,
        ):
            results[index] = result
            if on_done is not None:
                on_done(index, result)
        return results


def check_introduction(
    worker: Introduction, folder: Path, expected_run: str, needed_bytes: int
) -> None:
    """Raise InputError unless a worker can do its work.

    Args:
        worker: what it said of itself.
        folder: the run folder.
        expected_run: the run folder's identifier.
        needed_bytes: free memory that its GPU must have.
    """
    if worker.run_id != expected_run:
        raise InputError(
            f"the run folder must be on storage that all machines share, but "
            f"{worker.machine} does not see {folder}"
        )
    if worker.code != own_code():
        raise InputError(
            f"all machines must run the same code, but {worker.machine} has {worker.code} "
            f"and the driver {own_code()}; bring it up to date with `ray up`"
        )
    theirs = dict(worker.libraries)
    for library, version in own_libraries():
        if theirs.get(library) != version:
            raise InputError(
                f"all machines must have the same libraries, but {worker.machine} has {library} "
                f"{theirs.get(library)} and the driver {version}; bring it up to date with `ray up`"
            )
    if worker.free_bytes is not None and worker.free_bytes < needed_bytes:
        raise InputError(
            f"a worker that scores needs about {needed_bytes / 2**30:.1f} GiB of GPU memory, but "
            f"{worker.device} of {worker.machine} has {worker.free_bytes / 2**30:.1f} GiB free; "
            f"end what uses it (`nvidia-smi`), or leave the machine out"
        )


def _introduction(worker: Any, folder: Path) -> Reference:
    reference: Reference = worker.introduce.options(max_task_retries=-1).remote(folder)
    return reference


def _poll(running: Running) -> dict[int, tuple[int, int]]:
    asked: dict[Any, int] = {}
    for one in running.calls.values():
        worker: Any = running.worker_of(one)
        asked[worker.progress.options(concurrency_group="watch").remote()] = one.number
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


class _Watch:
    """Sees to trainings that make no steps any more.

    Args:
        jobs: those of the dispatch.
        stall_seconds: how long a step may take.
        say: called where one is given up.
        first_seconds: how long the first step may take, with all that is prepared before it.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        stall_seconds: float,
        say: Say,
        first_seconds: float = _FIRST_STEP_SECONDS,
    ) -> None:
        self._jobs, self._say = jobs, say
        self._seconds, self._first_seconds = stall_seconds, first_seconds
        self._moved: dict[Reference, tuple[tuple[int, int] | None, float]] = {}

    def look(self, running: Running, progress: dict[int, tuple[int, int]]) -> None:
        """Give up trainings whose last step is too long ago.

        Raises:
            RuntimeError: as `Running.lose` does.
        """
        now = time.monotonic()
        for reference, one in list(running.calls.items()):
            at = progress.get(one.number)
            before, since = self._moved.get(reference, (None, now))
            if at is not None and at != before:
                before, since = at, now
            self._moved[reference] = (before, since)
            stepped = before is not None and before[0] > 0
            if now - since > (self._seconds if stepped else self._first_seconds):
                ray.kill(running.worker_of(one), no_restart=False)
                running.lose(reference)
                self._say(
                    f"{running.name_of(one)} has made no step for {now - since:.0f} s while "
                    f"{self._jobs[one.number].told}; it is ended, and another one begins again"
                )
