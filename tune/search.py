"""The search: Ray Tune around the merge.

Only this module and tune.trial know Tune; what is suggested is Optuna's (tune.sampling). One call
of Tune runs all studies of a run. Its trials wait for workers, which own the CPUs or GPUs and live
as long as the run; Tune asks for the next trial, says when one is stopped, and begins again what a
dying worker left.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune import interrupts
from tune.sampling import Outcome, Sampling
from tune.trial import MergeTrial
from tune.workers import Shared

_TRIALS_PER_WORKER = 2
_RETRIES = 2  # where a trial's process or its worker dies

Finished = Callable[[int, int, Outcome], Mapping[str, Any]]
"""Called with study, number and outcome of a trial; what the storage is to note of it."""


class Studies:
    """The trials of several studies in turn.

    Args:
        samplings: the studies.
        on_finish: see `Finished`.
        slots: how many trials are under way at a time.
    """

    def __init__(self, samplings: Sequence[Sampling], on_finish: Finished, slots: int) -> None:
        self._samplings = samplings
        self._on_finish = on_finish
        self._slots = slots
        self._values: dict[tuple[int, int], list[tuple[float, ...]]] = {}
        self._errors: dict[tuple[int, int], str] = {}
        self._ended: set[tuple[int, int]] = set()
        self._turn = self._count = 0
        self.end: str | None = None
        """Why the whole search has to end."""
        self.fault: Exception | None = None
        """What went wrong here, and not in a trial."""

    @property
    def all_suggested(self) -> bool:
        """Whether no trial is left to begin."""
        return all(s.suggested >= s.study.trials for s in self._samplings)

    def next(self) -> dict[str, Any] | None:
        """The next trial's configuration; None where nothing can start now."""
        for offset in range(len(self._samplings)):
            index = (self._turn + offset) % len(self._samplings)
            found = self._samplings[index].suggest()
            if found is None:
                continue
            number, params = found
            self._turn = index + 1
            self._count += 1
            self._values[index, number] = []
            return {
                "study": index, "number": number, "params": params,
                "rungs": len(self._samplings[index].study.rungs),
                "slot": (self._count - 1) % self._slots,
            }  # fmt: skip
        return None

    def report(self, config: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
        """Note the result of a rung; whether the trial goes on."""
        place = (config["study"], config["number"])
        if place in self._ended:  # Tune tells the last rung of a stopped trial twice
            return False
        if result["done"]:
            self._ended.add(place)
        if "error" in result:
            self._errors[place] = result["error"]
            if result["ends_search"]:
                self.end = result["error"]
            return False
        values = tuple(float(value) for value in result["values"])
        rung = result["training_iteration"] - 1
        # A trial that is begun again reports its rungs again.
        self._values[place] = [*self._values[place][:rung], values]
        firsts = [of_rung[0] for of_rung in self._values[place]]
        goes_on: bool = self._samplings[place[0]].goes_on(place[1], firsts)
        if not goes_on:
            self._ended.add(place)
        return goes_on

    def finish(self, config: Mapping[str, Any], error: str | None) -> None:
        """Note that a trial is over; one that ended the whole search, or ended with it, is not."""
        place = (config["study"], config["number"])
        if self.end is not None or (error is None and place not in self._ended):
            return
        values = tuple(self._values.pop(place))
        outcome = Outcome(
            rungs=values,
            complete=len(values) == config["rungs"],
            error=self._errors.pop(place, error),
        )
        try:
            notes = self._on_finish(*place, outcome)
            self._samplings[place[0]].finish(place[1], outcome, notes)
        except Exception as fault:  # which Tune would take for the trial's
            self.fault = fault

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given for a restore that this search never asks for."""
        return {}


class _Suggestions(Searcher):
    """Hands Tune the studies' trials."""

    def __init__(self, studies: Studies) -> None:
        super().__init__()
        self._studies = studies

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - Tune's interface
        """The next trial's configuration."""
        interrupts.check()
        if self._studies.all_suggested:
            return Searcher.FINISHED
        return self._studies.next()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the callback knows more of the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a search resumes from the studies."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a search resumes from the studies."""


class _Halving(FIFOScheduler):
    """Stops trials as the studies say.

    Ray's own scheduler for asynchronous halving decides by what happens to have come in; here a
    decision depends on nothing but earlier trials, so that a search can be repeated.
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
        """Whether a trial goes on after a rung."""
        goes_on = self._studies.report(trial.config, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_complete(
        self,
        tune_controller: Any,  # noqa: ARG002 - Tune's interface
        trial: TuneTrial,
        result: dict[str, Any],
    ) -> None:
        """Note the last rung, of which Tune does not call `on_trial_result`."""
        self._studies.report(trial.config, result)


class _Ends(ray_tune.Callback):
    """Notes how trials end."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        **_info: Any,
    ) -> None:
        """Called with a trial that came to its end or was stopped."""
        self._studies.finish(trial.config, None)

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        **_info: Any,
    ) -> None:
        """Called with a trial whose process died more often than it may."""
        reason = (str(trial.get_error()).strip().splitlines() or ["see Ray's logs"])[-1]
        self._studies.finish(trial.config, f"its process died: {reason}")


class _Stopper(ray_tune.Stopper):
    """Ends a search where every other trial would fail like the last."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's
        """Whether this one trial has to stop, which others decide."""
        return False

    def stop_all(self) -> bool:
        """Whether all have to."""
        return self._studies.end is not None or self._studies.fault is not None


def run_searches(
    samplings: Sequence[Sampling],
    shared: Shared,
    workers: Sequence[ActorHandle[Any]],
    scratch: Path,
    on_finish: Finished,
) -> None:
    """Run what is left of the studies' trials.

    Args:
        samplings: the studies, in the order in which `shared` has them.
        shared: what workers have to know.
        workers: the actors that score; each has two trials at a time.
        scratch: folder for Tune's own state, which is removed at the end.
        on_finish: called with study, number and outcome as each trial ends; what the storage is to
            note of it.

    Raises:
        RuntimeError: where a trial met an error that every other one would meet too.
        Exception: what `on_finish` or a storage raised.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    slots = _TRIALS_PER_WORKER * len(workers)
    # Tune drops a trial's process where no trial is waiting for it.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)
    studies = Studies(samplings, on_finish, slots)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(MergeTrial, shared=ray.put(shared), workers=tuple(workers)),
        # A trial only waits for a worker, which owns the CPUs or the GPU; this limits their number.
        {"node:__internal_head__": int(10_000 / slots) / 10_000},
    )
    tuner = ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=_Suggestions(studies),
            scheduler=_Halving(studies),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="search",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[_Ends(studies)],
            stop=_Stopper(studies),
            failure_config=ray_tune.FailureConfig(max_failures=_RETRIES),
        ),
    )
    tuner.fit()
    if studies.fault is not None:
        raise studies.fault
    if studies.end is not None:
        raise RuntimeError(f"the search was ended by an error that all trials meet: {studies.end}")
    shutil.rmtree(scratch, ignore_errors=True)
