"""The workers of a run: Ray actors pinned to a GPU, a part of one, or a CPU slot.

One that is killed is restarted, and its job is begun again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from apgd.errors import InputError
from tune.cluster import Cluster
from tune.experiment import run_id
from tune.workers.dispatch import LOST, Actor, Crew, Patience, Reference, Running, Say
from tune.workers.introductions import Introduction, check_introduction
from tune.workers.remote import RemoteWorker

_ATTEMPTS = 6
_POLL_SECONDS = 0.5
_START_SECONDS = 180
_LATE_SECONDS = 30
"""Those that come later than the first by more than that join when they are there."""
_STALL_SECONDS = 600.0
"""A training that has made no step for so long is begun again by another worker."""
_FIRST_STEP_SECONDS = 6 * 3600.0
"""One whose first step takes so long is, too: data that a machine lacks is downloaded before it."""


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

    @contextmanager
    def lent(self) -> Iterator[list[Actor]]:
        """The actors, for somebody who calls them directly.

        Those that died meanwhile came back without being asked who they are. So before anybody
        works for this pool again, all say so, and who may not work is left out.
        """
        crew = self._started()
        try:
            yield crew.workers
        finally:
            crew.meet_again()

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
        crew = self._crew
        there = [worker for number, worker in enumerate(crew.workers) if number not in crew.left]
        asked: list[Any] = [worker.peak.remote() for worker in there]
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
