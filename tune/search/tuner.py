"""Ray Tune around the merge.

Only this module and tune.search.process know Tune; what is suggested is Optuna's
(tune.search.sampling). One call of Tune runs all studies of a run. Its trials are processes that
have workers judge merges (tune.search.judges); workers own the CPUs or GPUs. Each process goes on
to the studies' next trials as earlier ones end; Tune starts them, brings their results, and begins
again those that die.
"""

import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from apgd.errors import InputError
from apgd.masking import without_secrets
from tune import interrupts
from tune.search.errors import SearchEndedError
from tune.search.judges import Ended, Loss, News, Order, Place, Stuck
from tune.search.process import MergeTrial
from tune.search.sampling import Outcome, Sampling
from tune.workers.process import Shared

_TRIALS_PER_WORKER = 2
_WORKERS_PER_PROCESS = 8
_OF_HEAD = 0.001
_RETRIES = 50  # of a process of Tune's, which may be as old as the search
_QUIET_SECONDS = 5.0
_WRITE_SECONDS = 1.0
_ALONE_SECONDS = 1800.0
"""For so long all workers may be gone before a search ends, as when spot machines are taken."""

_TOLD: Mapping[str, type[Exception]] = {
    "InputError": InputError,
    "DamagedError": InputError,
    "DiskFullError": SearchEndedError,
    "MemoryFullError": SearchEndedError,
}
"""What is told in one sentence when it ends a search, as elsewhere; others are errors of ours."""

Finished = Callable[[int, int, Outcome], Mapping[str, Any]]
"""Called with study, number and outcome of a trial; what the storage is to note of it."""
Say = Callable[[str], None]
"""Called with a sentence for whoever runs the search."""


class Studies:
    """The trials of several studies in turn, and who judges them.

    Args:
        samplings: the studies.
        on_finish: see `Finished`.
        workers: how many judge; each has two trials, so that the next one is there when one ends.
        processes: how many hand out trials to them.
        say: called with a sentence where a worker or a process is lost.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        on_finish: Finished,
        workers: int,
        processes: int = 1,
        say: Say = lambda _sentence: None,
    ) -> None:
        self._samplings = samplings
        self._on_finish = on_finish
        self._workers = workers
        self._most = math.ceil(_TRIALS_PER_WORKER * workers / processes)
        self._say = say
        self._turn = 0
        self._given: list[dict[Place, Order]] = [{} for _ in range(processes)]
        self._worker_of: dict[Place, int] = {}
        self._down = [frozenset(range(workers))] * processes  # as each of them sees it
        self._machines: dict[int, str] = {}
        self._refused: set[int] = set()
        self._failed: dict[int, str] = {}
        self._alone: float | None = None  # since when no worker lives
        self._told_alone = False
        self._written = time.monotonic()
        self.end: str | None = None
        """Why the whole search has to end."""
        self.end_kind = ""
        """The name of the error's class, where that is a trial's."""
        self.fault: Exception | None = None
        """What went wrong here, and not in a trial."""

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return not self._worker_of and all(s.suggested >= s.study.trials for s in self._samplings)

    def answer(self, process: int, news: News) -> list[Order]:
        """Note what a process reports; what it is to do next."""
        try:
            return self._answer(process, news)
        except Exception as fault:  # which Tune would take for the trial's
            self.fault = fault
            return []

    def _answer(self, process: int, news: News) -> list[Order]:
        self._note_workers(process, news)
        given = self._given[process]
        for ended in news.ended:
            if ended.place in given:
                del given[ended.place], self._worker_of[ended.place]
                self._finish(ended)
        held = news.holding
        self._worker_of.update((place, held[place]) for place in given if place in held)
        self.write()
        # A process that was begun again knows nothing of what it had.
        orders = [order for place, order in given.items() if place not in held]
        while len(given) < self._most and self.end is None:
            worker = self._freest(process)
            order = None if worker is None else self._next(worker)
            if order is None:
                break
            given[order.place] = order
            self._worker_of[order.place] = order.worker
            orders.append(order)
        return orders

    def _next(self, worker: int) -> Order | None:
        """The next trial, for a worker; None where none can start now."""
        for offset in range(len(self._samplings)):
            index = (self._turn + offset) % len(self._samplings)
            found = self._samplings[index].suggest()
            if found is not None:
                number, params = found
                self._turn = index + 1
                return Order(index, number, params, self._samplings[index].bars(number), worker)
        return None

    def _freest(self, process: int) -> int | None:
        """The living worker with the fewest trials, where it has room for another."""
        under_way, down = Counter(self._worker_of.values()), self._down[process]
        living = [worker for worker in range(self._workers) if worker not in down]
        freest = min(living, key=lambda worker: under_way[worker], default=None)
        return None if freest is None or under_way[freest] >= _TRIALS_PER_WORKER else freest

    def _note_workers(self, process: int, news: News) -> None:
        for loss in news.losses:
            self._say(self._told(loss))
        self._machines.update(news.met)
        for worker, machine in news.refused.items():
            if worker not in self._refused:
                self._refused.add(worker)
                self._say(
                    f"worker {worker} on {machine} has other code or libraries than the driver, "
                    f"and is left out; bring {machine} up to date with `ray up`"
                )
        for worker, error in news.failed.items():
            if worker not in self._failed:
                self._failed[worker] = without_secrets(error)
                self._say(f"{self._name_worker(worker)} cannot start, and is left out: {error}")
        if len(self._refused) == self._workers:
            self.end = "workers that all have other code or libraries than the driver"
        elif len(self._refused | self._failed.keys()) == self._workers:
            number, error = next(iter(self._failed.items()))
            self.end = f"workers that may all not judge; worker {number} cannot start: {error}"
        self._down[process] = frozenset(news.down)
        if len(frozenset.intersection(*self._down)) < self._workers:
            self._alone = None
            return
        now = time.monotonic()
        if self._alone is None:
            self._alone, self._told_alone = now, False
        elif now - self._alone > _ALONE_SECONDS and self.end is None:
            self.end = (
                f"a cluster without workers for {_ALONE_SECONDS / 60:.0f} minutes; the same "
                f"command goes on when machines are there again"
            )
        elif now - self._alone > _QUIET_SECONDS and not self._told_alone:
            self._told_alone = True
            self._say("no worker is left; the search waits until one is back")

    def _finish(self, ended: Ended) -> None:
        """Note that a trial is over; one that ended the whole search, or ended with it, is not."""
        error = None if ended.error is None else without_secrets(ended.error)
        if ended.ends_search:
            self.end = f"an error that all trials meet: {error}"
            self.end_kind = ended.kind
        if self.end is not None:
            return
        index, number = ended.place
        sampling = self._samplings[index]
        outcome = Outcome(
            rungs=ended.values,
            complete=len(ended.values) == len(sampling.study.rungs),
            error=error,
            times=ended.times,
        )
        sampling.finish(number, outcome, self._on_finish(index, number, outcome))

    def write(self, *, now: bool = False) -> None:
        """Let the storage have what has finished, once a second or `now`.

        What it does not have yet is not lost with this process: the rungs are on disk.
        """
        if now or time.monotonic() - self._written > _WRITE_SECONDS:
            for sampling in self._samplings:
                sampling.write()
            self._written = time.monotonic()

    def _told(self, loss: Loss) -> str:
        trials = " and ".join(map(self._name, loss.places))
        worker = self._name_worker(loss.worker)
        if not loss.places:
            return f"{worker} died; nothing that it had is left to be judged"
        if loss.error is not None:
            return f"{worker} failed while judging {trials} ({loss.error}); it is tried again"
        others = " and ".join(map(self._name_worker, loss.taken_by))
        if loss.seconds is not None:
            return (
                f"{worker} has been judging {trials} for {loss.seconds:.0f} s, far longer than "
                f"others take; {others} judges it as well"
            )
        again = f"what it judged is judged again by {others}" if others else "others will judge it"
        return f"{worker} died while judging {trials}; {again}"

    def _name(self, place: Place) -> str:
        return f"trial {place[1]} of {self._samplings[place[0]].study.name}"

    def _name_worker(self, worker: int) -> str:
        machine = self._machines.get(worker)
        return f"worker {worker} on {machine}" if machine else f"worker {worker}"

    def begun_again(self, process: int, reason: str) -> None:
        """Note that a process died, which Tune begins again."""
        count = len(self._given[process])
        trials = f"{count} trial{'' if count == 1 else 's'}"
        self._say(
            f"a process of the search died ({reason}); it is begun again and goes on with "
            f"{trials} from the rungs on disk"
        )

    def given_up(self, reason: str) -> None:
        """Note that a process died more often than it may."""
        self.end = f"a process of Tune's that died {_RETRIES + 1} times: {reason}"

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given for a restore that this search never asks for."""
        return {}


class _Hands(FIFOScheduler):
    """Hands the processes their trials.

    Ray's own scheduler for asynchronous halving decides by what happens to have come in; here which
    trials are stopped depends on nothing but earlier trials, so that a search can be repeated.
    """

    def __init__(self, studies: Studies) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._studies = studies

    def on_trial_result(
        self,
        tune_controller: Any,  # noqa: ARG002 - Tune's interface
        trial: TuneTrial,
        result: dict[str, Any],
    ) -> str:
        """Whether a process is needed any longer."""
        orders = self._studies.answer(trial.config["process"], result["news"])
        if orders:
            actor: Any = trial.temporary_state.ray_actor
            actor.take.remote(orders)  # it gets this before it is asked for its next result
        return TrialScheduler.STOP if self._studies.finished else TrialScheduler.CONTINUE


class _Deaths(ray_tune.Callback):
    """Notes how processes die."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies

    def on_trial_recover(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        **_info: Any,
    ) -> None:
        """Called with a process that died and is begun again."""
        self._studies.begun_again(trial.config["process"], _reason(trial))

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        **_info: Any,
    ) -> None:
        """Called with a process that died more often than it may."""
        self._studies.given_up(_reason(trial))


def _reason(trial: TuneTrial) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return without_secrets(lines[-1].strip()) if lines else "see Ray's logs"


class _Stopper(ray_tune.Stopper):
    """Ends a search where every other trial would fail like the last."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's
        """Whether this one trial has to stop, which others decide."""
        return False

    def stop_all(self) -> bool:
        """Whether all have to; Tune asks this at every turn."""
        interrupts.check()
        return self._studies.end is not None or self._studies.fault is not None


def run_searches(
    samplings: Sequence[Sampling],
    shared: Shared,
    workers: Sequence[ActorHandle[Any]],
    scratch: Path,
    on_finish: Finished,
    say: Say = lambda _sentence: None,
    identity: str | None = None,
    stuck: Stuck | None = None,
) -> None:
    """Run what is left of the studies' trials.

    Args:
        samplings: the studies, in the order in which `shared` has them.
        shared: what workers have to know.
        workers: the actors that score; each has two trials at a time.
        scratch: folder for Tune's own state, which is removed at the end.
        on_finish: called with study, number and outcome as each trial ends; what the storage is to
            note of it.
        say: called with a sentence where a worker or a process of Tune's is lost.
        identity: what workers have to answer to `identify`, see `tune.search.judges.Judges`.
        stuck: when a rung is given to a second worker; as `Stuck` has it, where None.

    Raises:
        InputError: where a trial met one, which every other one would meet too.
        SearchEndedError: where it met a full disk, or too little memory.
        RuntimeError: where it met another such error, or no worker is left.
        Exception: what `on_finish` or a storage raised.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    processes = math.ceil(len(workers) / _WORKERS_PER_PROCESS)
    # A search never resumes from what Tune writes down, but from the studies and rungs on disk.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)
    # It prints a traceback for every process that dies, which `say` is told in a sentence.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    studies = Studies(samplings, on_finish, len(workers), processes, say)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            MergeTrial,
            shared=ray.put(shared),
            workers=tuple(workers),
            stuck=stuck or Stuck(),
            identity=identity,
        ),
        # A process only waits for workers, which own the CPUs or GPUs; it lives beside the driver.
        # Ray counts a node in parts of one, and other runs on this cluster have theirs.
        {"node:__internal_head__": _OF_HEAD},
    )
    tuner = ray_tune.Tuner(
        trainable,
        param_space={"process": ray_tune.grid_search(list(range(processes)))},
        tune_config=ray_tune.TuneConfig(scheduler=_Hands(studies)),
        run_config=ray_tune.RunConfig(
            name="search",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[_Deaths(studies)],
            stop=_Stopper(studies),
            failure_config=ray_tune.FailureConfig(max_failures=_RETRIES),
        ),
    )
    try:
        tuner.fit()
    finally:
        if studies.fault is None:
            studies.write(now=True)
    if studies.fault is not None:
        raise studies.fault
    if studies.end is not None:
        kind = _TOLD.get(studies.end_kind, RuntimeError)
        raise kind(f"the search was ended by {studies.end}")
    shutil.rmtree(scratch, ignore_errors=True)
