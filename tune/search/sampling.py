"""One study in Optuna: what is suggested next, and what became of it.

A suggestion is a function of its number and of the results of earlier trials: it knows all but the
last few before it (`Study.at_once`), whoever is faster, and its sampler has a seed of its own. So
neither the number of workers nor an interruption changes what is suggested.

Samplers see a copy of the study in memory (tune.search.seen). The study in the storage gets trials
when they have finished, in the order of the numbers, several in one transaction; nothing else is
ever written there, so that a process that is killed leaves no trial half written or running. Those
that it had not written yet are suggested again, and their rungs are on disk.
"""

import math
import warnings
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.search.rungs import bar
from tune.search.seen import Seen
from tune.search.storage import add_trials
from tune.search.studies import Params, Sampler, Study

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
    times: tuple[float, ...] = field(default=(), compare=False)
    """When its rungs were done, in seconds of Unix time; nothing depends on it."""

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
        warnings.filterwarnings("ignore", "`gamma` has been deprecated", FutureWarning)
        self.study = study
        directions = [StudyDirection.MAXIMIZE] * len(study.objectives)
        self._distributions = {
            declared.name: distribution(declared.kind, low, high, declared.log)
            for declared, low, high in study.space
        }
        self._grid = _grid(study) if study.sampler is Sampler.GRID else []
        self._seen = Seen(self._distributions, len(study.objectives))
        self._kept = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        self._kept.set_metric_names(list(study.objectives))
        self._params: list[Params] = []
        self._outcomes: dict[int, Outcome] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._unwritten: dict[int, FrozenTrial] = {}
        self._bars: dict[int, tuple[float, ...]] = {}
        self._firsts: list[list[float]] = [[] for _ in range(len(study.rungs))]
        """By rung the first objectives of all trials whose outcome samplers know, ascending."""
        self._gains = [0.0] * len(study.rungs)
        """By rung what the complete of them have gained after it, in sum."""
        self._complete = 0
        self._known = 0  # of how many trials samplers know the outcome
        for trial in self._kept.get_trials(deepcopy=False):
            self._suggest_again(trial)
        self.written = len(self._params)
        """Trials whose outcome the storage has: the first so many."""

    def _suggest_again(self, trial: FrozenTrial) -> None:
        self._begin(dict(trial.params))
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

    def outcome(self, number: int) -> Outcome:
        """What became of a trial that has finished."""
        return self._outcomes[number]

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
        self._bars[number] = self._bars_now(number)
        if number == 0:
            published = self.study.published.as_dict()
            self._begin({name: published[name] for name in self._distributions})
        elif self.study.sampler is Sampler.GRID:
            self._begin(self._grid[number - 1])
        else:
            self._params.append(self._seen.suggest(_sampler(self.study, number, self._seen)))
        return number, self._params[number]

    def _begin(self, params: Params) -> None:
        """Let samplers see a trial under way that they did not suggest just now."""
        self._seen.begin(params)
        self._params.append(params)

    def _bars_now(self, number: int) -> tuple[float, ...]:
        if number == 0 or not self.study.stops:  # the published settings are judged on everything
            return (-math.inf,) * (len(self.study.rungs) - 1)
        return tuple(bar(firsts, self.study.rungs.reduction) for firsts in self._firsts[:-1])

    def bars(self, number: int) -> tuple[float, ...]:
        """What a trial's first objective must reach after each rung but the last to go on.

        It is known when the trial is suggested, and depends on the trials that this knew.

        Args:
            number: the trial's, which was suggested by this object.
        """
        return self._bars[number]

    def finish(self, number: int, outcome: Outcome, notes: Mapping[str, Any]) -> None:
        """Note what became of a trial.

        Args:
            number: the trial's.
            outcome: what became of it.
            notes: what else the storage keeps of it, JSON values.
        """
        self._outcomes[number] = outcome
        self._notes[number] = dict(notes)
        self._unwritten[number] = self._frozen(number)

    def write(self) -> None:
        """Give the storage what became of trials, up to the first that is still under way."""
        new: list[FrozenTrial] = []
        while self.written + len(new) in self._unwritten:
            new.append(self._unwritten[self.written + len(new)])
        if new:
            add_trials(self._kept, self.written, new)
            for number in range(self.written, self.written + len(new)):
                del self._unwritten[number]
            self.written += len(new)

    def _frozen(self, number: int) -> FrozenTrial:
        outcome = self._outcomes[number]
        notes: dict[str, Any] = {"rungs": outcome.rungs, **self._notes[number]}
        if outcome.error is not None:
            notes["error"] = outcome.error
        single = len(self.study.objectives) == 1
        return create_trial(
            state=outcome.state,
            values=outcome.rungs[-1] if outcome.state is TrialState.COMPLETE else None,
            params=self._params[number],
            distributions=self._distributions,
            intermediate_values=_intermediate(outcome) if single else {},
            user_attrs=notes,
        )

    def _tell(self, number: int) -> None:
        outcome = self._outcomes[number]
        if outcome.error is not None:
            self._seen.tell(number, None)
            return
        if outcome.complete:
            self._seen.tell(number, outcome.rungs[-1])
            self._complete += 1
            for rung, values in enumerate(outcome.rungs):
                self._gains[rung] += outcome.rungs[-1][0] - values[0]
        else:
            # Optuna takes any stopped trial for worse than all complete ones, which with few trials
            # misleads it: of the complete ones many are bad that nobody could be compared with yet.
            self._seen.tell(number, [self._expected(outcome)])
        for firsts, values in zip(self._firsts, outcome.rungs, strict=False):
            insort(firsts, values[0])

    def _expected(self, outcome: Outcome) -> float:
        """What a stopped trial would have come to, had it gained what others did on average."""
        rung = len(outcome.rungs) - 1
        gain = self._gains[rung] / self._complete if self._complete else 0.0
        return outcome.rungs[rung][0] + gain


def _intermediate(outcome: Outcome) -> dict[int, float]:
    return {rung: values[0] for rung, values in enumerate(outcome.rungs)}


def distribution(kind: type, low: float, high: float, log: bool) -> BaseDistribution:
    """A parameter's range as Optuna has it."""
    if kind is int:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _random(seed: int) -> optuna.samplers.RandomSampler:
    return optuna.samplers.RandomSampler(seed=seed)


class _Tpe(optuna.samplers.TPESampler):
    """Knows that all trials of a study have the same parameters, for which it would look."""

    space: Mapping[str, BaseDistribution]
    seen: Seen

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:  # noqa: ARG002
        """All parameters."""
        return self.space

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,  # noqa: ARG002
    ) -> dict[str, np.ndarray]:
        """What Optuna's own returns, without converting every trial for every suggestion."""
        return self.seen.internal([trial.number for trial in trials], search_space)


def _sampler(study: Study, number: int, seen: Seen) -> optuna.samplers.BaseSampler:
    """The sampler of one suggestion, with the arguments pinned that have changed over time."""
    seed = int(np.random.SeedSequence([study.suggesting_seed, number]).generate_state(1)[0])
    if study.sampler is Sampler.RANDOM:
        return _random(seed)
    sampler = _Tpe(
        seed=seed,
        n_startup_trials=_STARTUP_TRIALS,
        n_ei_candidates=_CANDIDATES,
        multivariate=True,
        group=False,
        constant_liar=True,
        gamma=lambda _count: seen.good,
    )
    sampler.seen = seen
    sampler.space = {name: known for name, known in seen.space.items() if not known.single()}
    return sampler


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
