"""One study in Optuna: what is suggested next, and what became of it.

A suggestion is a function of its number and of the results of earlier trials: it knows all but the
last few before it (`Study.at_once`), whoever is faster, and its sampler has a seed of its own. So
neither the number of workers nor an interruption changes what is suggested.

Samplers see a copy of the study in memory. The study in the storage gets each trial in one go when
it has finished, in the order of the numbers; nothing else is ever written there, so that a process
that is killed leaves no trial half written or running.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.rungs import goes_on
from tune.studies import Params, Sampler, Study

_STARTUP_TRIALS = 8
_GRID_POINTS = 5
_CANDIDATES = 24


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trial."""

    rungs: tuple[tuple[float, ...], ...]
    """Objectives after each rung that it reached."""
    complete: bool
    """Whether the last of them is its last; otherwise it was stopped, or failed."""
    error: str | None = None
    """Why it failed, in a sentence."""

    @property
    def state(self) -> TrialState:
        """Its state in Optuna."""
        if self.error is not None:
            return TrialState.FAIL
        return TrialState.COMPLETE if self.complete else TrialState.PRUNED


class Sampling:
    """One study, while it is searched.

    Args:
        study: what is searched.
        name: of the study in the storage.
        storage: where it is kept; nowhere, where None.
    """

    def __init__(
        self, study: Study, name: str, storage: optuna.storages.BaseStorage | None = None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.study = study
        directions = [StudyDirection.MAXIMIZE] * len(study.objectives)
        self._distributions = {
            declared.name: _distribution(declared.kind, low, high, declared.log)
            for declared, low, high in study.space
        }
        self._grid = _grid(study) if study.sampler is Sampler.GRID else []
        self._memory = optuna.create_study(directions=directions, sampler=_random(0))
        self._kept = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        self._kept.set_metric_names(list(study.objectives))
        self._params: list[Params] = []
        self._trials: list[optuna.Trial] = []
        self._outcomes: dict[int, Outcome] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._known = 0  # of how many trials samplers know the outcome
        for trial in self._kept.get_trials(deepcopy=False):
            self._suggest_again(trial)
        self.written = len(self._params)
        """Trials whose outcome the storage has: the first so many."""

    def _suggest_again(self, trial: FrozenTrial) -> None:
        self._add(dict(trial.params))
        rungs = trial.user_attrs["rungs"]
        self._outcomes[trial.number] = Outcome(
            rungs=tuple(tuple(values) for values in rungs),
            complete=trial.state is TrialState.COMPLETE,
            error=trial.user_attrs.get("error"),
        )
        self._notes[trial.number] = dict(trial.user_attrs)

    @property
    def suggested(self) -> int:
        """Trials that were suggested, earlier ones included; their numbers begin at 0."""
        return len(self._params)

    @property
    def finished(self) -> bool:
        """Whether every trial has an outcome that the storage has."""
        return self.written >= self.study.trials

    def params(self, number: int) -> Params:
        """What was suggested for a trial."""
        return self._params[number]

    def notes(self, number: int) -> Mapping[str, Any]:
        """What the storage keeps of a trial that has finished."""
        return self._notes[number]

    def suggest(self) -> tuple[int, Params] | None:
        """The next trial's number and parameters.

        None where all were suggested, or where the outcome of an earlier one must be known first.
        """
        number = self.suggested
        first_unknown = max(0, number - self.study.at_once + 1)
        if number >= self.study.trials:
            return None
        while self._known < first_unknown:
            if self._known not in self._outcomes:
                return None
            self._tell(self._known)
            self._known += 1
        if number == 0:
            published = self.study.published.as_dict()
            self._add({name: published[name] for name in self._distributions})
        elif self.study.sampler is Sampler.GRID:
            self._add(self._grid[number - 1])
        else:
            self._memory.sampler = _sampler(self.study, number)
            self._trials.append(self._memory.ask(self._distributions))
            self._params.append(dict(self._trials[-1].params))
        return number, self._params[number]

    def _add(self, params: Params) -> None:
        """Let samplers see a trial under way that they did not suggest just now."""
        self._memory.sampler = _random(0)
        self._memory.enqueue_trial(params)
        self._trials.append(self._memory.ask(self._distributions))
        self._params.append(params)

    def goes_on(self, number: int, values: Sequence[float]) -> bool:
        """Whether a trial goes on after a rung, by the trials that its suggestion knew.

        Args:
            number: the trial's.
            values: its first objective at the rungs so far.
        """
        if number == 0 or not self.study.stops:
            return True  # the published settings are judged on everything
        rung = len(values) - 1
        known = (self._outcomes[i] for i in range(max(0, number - self.study.at_once + 1)))
        others = [o.rungs[rung][0] for o in known if o.error is None and len(o.rungs) > rung]
        return goes_on(values[rung], others, self.study.rungs.reduction)

    def finish(self, number: int, outcome: Outcome, notes: Mapping[str, Any]) -> None:
        """Note what became of a trial; the storage gets it once the earlier ones have finished.

        Args:
            number: the trial's.
            outcome: what became of it.
            notes: what else the storage keeps of it, JSON values.
        """
        self._outcomes[number] = outcome
        self._notes[number] = dict(notes)
        while self.written in self._outcomes:
            self._write(self.written)
            self.written += 1

    def _write(self, number: int) -> None:
        outcome = self._outcomes[number]
        notes: dict[str, Any] = {"rungs": outcome.rungs, **self._notes[number]}
        if outcome.error is not None:
            notes["error"] = outcome.error
        single = len(self.study.objectives) == 1
        self._kept.add_trial(
            create_trial(
                state=outcome.state,
                values=outcome.rungs[-1] if outcome.state is TrialState.COMPLETE else None,
                params=self._params[number],
                distributions=self._distributions,
                intermediate_values=_intermediate(outcome) if single else {},
                user_attrs=notes,
            )
        )

    def _tell(self, number: int) -> None:
        outcome, trial = self._outcomes[number], self._trials[number]
        if outcome.state is TrialState.PRUNED:
            # Optuna takes any stopped trial for worse than all complete ones, which with few trials
            # misleads it: of the complete ones many are bad that nobody could be compared with yet.
            self._memory.tell(trial, self._expected(number))
        elif outcome.state is TrialState.COMPLETE:
            self._memory.tell(trial, list(outcome.rungs[-1]))
        else:
            self._memory.tell(trial, state=outcome.state)

    def _expected(self, number: int) -> float:
        """What a stopped trial would have come to, had it gained what others did on average."""
        reached = self._outcomes[number].rungs
        known = [self._outcomes[i] for i in range(self._known)]
        gains = [o.rungs[-1][0] - o.rungs[len(reached) - 1][0] for o in known if o.complete]
        return reached[-1][0] + (sum(gains) / len(gains) if gains else 0.0)


def _intermediate(outcome: Outcome) -> dict[int, float]:
    return {rung: values[0] for rung, values in enumerate(outcome.rungs)}


def _distribution(kind: type, low: float, high: float, log: bool) -> BaseDistribution:
    if kind is int:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _random(seed: int) -> optuna.samplers.RandomSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _sampler(study: Study, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one suggestion, with the arguments pinned that have changed over time."""
    seed = int(np.random.SeedSequence([study.suggesting_seed, number]).generate_state(1)[0])
    if study.sampler is Sampler.RANDOM:
        return _random(seed)
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=_STARTUP_TRIALS,
        n_ei_candidates=_CANDIDATES,
        multivariate=True,
        group=False,
        constant_liar=True,
    )


def most_trials(study: Study) -> float:
    """How many trials of a study differ: of a grid its points, of an empty space one."""
    if not study.space:
        return 1
    return 1 + len(_grid(study)) if study.sampler is Sampler.GRID else math.inf


def _grid(study: Study) -> list[Params]:
    """Every point of the grid but the published one, in an order that covers the ranges early."""
    axes = [
        [(declared.name, value) for value in declared.points(_GRID_POINTS, low, high)]
        for declared, low, high in study.space
    ]
    published = study.published.as_dict()
    every: list[Params] = [dict(point) for point in product(*axes)]
    points = [p for p in every if any(value != published[name] for name, value in p.items())]
    np.random.default_rng(study.suggesting_seed).shuffle(points)
    return points
