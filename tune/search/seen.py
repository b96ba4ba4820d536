"""What samplers see of a study: of a long one, a part of its trials.

Optuna's TPE reads its whole history at every suggestion, so that a study of 10,000 trials would
take longer and longer over each. Here it sees the best and, of the others, as many as spread evenly
over the study: which ones follows from the trials' numbers and outcomes alone. It still takes as
many for good ones as if it saw them all, since they make its model of good trials fine or coarse.
"""

import math
from bisect import insort
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune.search.studies import Params

MOST = 250
"""So many ended trials samplers see at most."""
_BEST = 25
"""Of them, those that are the best: as many as TPE builds its model of good trials from at most."""
_GOOD = 0.1
"""The part of all trials that TPE takes for good ones, as long as there are no more than those."""


class Seen:
    """A study in memory, for samplers.

    Args:
        distributions: the parameters.
        objectives: how many values trials have; each is maximised.
        most: so many ended trials are seen at most.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], objectives: int, most: int = MOST
    ) -> None:
        self.space = {name: _continuous(own) for name, own in distributions.items()}
        """The parameters as samplers see them."""
        self._whole = {
            n: own for n, own in distributions.items() if isinstance(own, IntDistribution)
        }
        self._storage = _Storage()
        directions = [StudyDirection.MAXIMIZE] * objectives
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._most = most
        self._ended: list[int] = []  # those that have values, in the order in which they were told
        self._best: list[tuple[float, int]] = []  # of one objective, or the front of several
        self._front: dict[int, np.ndarray] = {}
        self._running: set[int] = set()
        self._columns = {name: column for column, name in enumerate(self.space)}
        self._internal = np.empty((64, len(self.space)))  # (at least the trials, parameters)

    @property
    def shown(self) -> list[int]:
        """Numbers of the ended trials that samplers see."""
        if len(self._ended) <= self._most:
            return self._ended
        best = self._leading()
        spread = np.linspace(0, len(self._ended) - 1, self._most - len(best)).round().astype(int)
        return sorted({*best, *(self._ended[i] for i in spread)})

    @property
    def good(self) -> int:
        """How many trials TPE takes for good ones: as many as if it saw all of them."""
        return min(math.ceil(_GOOD * len(self._ended)), _BEST)

    def _leading(self) -> list[int]:
        if not self._front:
            return [-place for _, place in self._best[-_BEST:]]
        front = list(self._front)
        if len(front) <= _BEST:
            return front
        return [front[i] for i in np.linspace(0, len(front) - 1, _BEST).round().astype(int)]

    def begin(self, params: Params) -> None:
        """Show a trial under way; trials are numbered from 0."""
        # The only study of its storage: its trials' identifiers are their numbers.
        number = self._storage.create_new_trial(self._study._study_id)
        self._show(number, params)
        self._running.add(number)

    def _show(self, number: int, params: Params) -> None:
        for name, value in params.items():
            internal = self.space[name].to_internal_repr(value)
            self._storage.set_trial_param(number, name, internal, self.space[name])
        if number >= len(self._internal):
            self._internal = np.concatenate([self._internal, np.empty_like(self._internal)])
        shown = self._storage.get_trial(number).params
        self._internal[number] = [
            known.to_internal_repr(shown[name]) for name, known in self.space.items()
        ]

    def internal(self, numbers: Sequence[int], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Parameters of some trials as Optuna computes with them: name -> (trials,)."""
        known = self._internal[list(numbers)].T.copy()
        return {name: known[self._columns[name]] for name in names}

    def suggest(self, sampler: optuna.samplers.BaseSampler) -> Params:
        """Let a sampler suggest a trial, which then is under way."""
        self._storage.show([*self.shown, *sorted(self._running)])
        self._study.sampler = sampler
        trial = self._study.ask(self.space)
        whole: Params = {
            name: min(max(round(trial.params[name]), known.low), known.high)
            for name, known in self._whole.items()
        }
        self._show(trial.number, whole)
        self._running.add(trial.number)
        return {**trial.params, **whole}

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """Show what came of a trial; None for one that failed, which is not seen any more."""
        self._running.discard(number)
        if values is None:
            self._storage.set_trial_state_values(number, TrialState.FAIL)
            return
        self._storage.set_trial_state_values(number, TrialState.COMPLETE, list(values))
        self._ended.append(number)
        if len(values) == 1:
            insort(self._best, (values[0], -number))  # of equals, the earliest
            del self._best[:-_BEST]
            return
        own = np.array(values)
        if not any((other >= own).all() for other in self._front.values()):
            kept = {n: v for n, v in self._front.items() if not (own >= v).all()}
            self._front = {**kept, number: own}


def _continuous(known: BaseDistribution) -> BaseDistribution:
    """A whole number's range as one of numbers that are rounded; others as they are.

    For whole numbers TPE integrates over every step, which is most of the time that it takes.
    """
    if not isinstance(known, IntDistribution) or known.single():
        return known
    return FloatDistribution(known.low - 0.5, known.high + 0.5, log=known.log)


class _Unconstrained(FrozenTrial):
    """A trial without constraints, which TPE would look for in all of them at every suggestion."""

    @property
    def constraints(self) -> dict[str, float]:
        """None."""
        return {}


class _Storage(optuna.storages.InMemoryStorage):
    """Shows some of its trials."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[FrozenTrial] = []
        self._finished: dict[int, FrozenTrial] = {}

    def show(self, numbers: Sequence[int]) -> None:
        """Show these from now on."""
        self._shown = [self._finished.get(n) or self._find(n) for n in numbers]

    def _find(self, number: int) -> FrozenTrial:
        trial = self.get_trial(number)
        if not trial.state.is_finished():
            return trial
        self._finished[number] = _Unconstrained(
            number=number, trial_id=number, state=trial.state, value=None, values=trial.values,
            params=trial.params, distributions=trial.distributions, intermediate_values={},
            user_attrs={}, system_attrs={},
            datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete,
        )  # fmt: skip
        return self._finished[number]

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002 - there is one
        deepcopy: bool = True,  # noqa: ARG002 - nobody changes them
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials that are shown."""
        shown = self._shown
        return list(shown) if states is None else [t for t in shown if t.state in states]
