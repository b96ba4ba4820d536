"""What samplers see of a study: of a long one, a part of its trials.

Optuna's TPE reads its whole history at every suggestion, so that a study of 10,000 trials would
take longer and longer over each. Here it sees the best and, of the others, as many as spread evenly
over the study: which ones follows from the trials' numbers and outcomes alone.
"""

from bisect import insort
from collections.abc import Container, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune.studies import Params

MOST = 120
"""So many ended trials samplers see at most."""
_BEST = 25
"""Of them, those that are the best: more than TPE builds its model of good trials from."""


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
        self._distributions = dict(distributions)
        self._storage = _Storage()
        directions = [StudyDirection.MAXIMIZE] * objectives
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._most = most
        self._ended: list[int] = []  # those that have values, in the order in which they were told
        self._best: list[tuple[float, int]] = []  # of one objective, or the front of several
        self._front: dict[int, np.ndarray] = {}
        self._running: set[int] = set()

    @property
    def shown(self) -> list[int]:
        """Numbers of the ended trials that samplers see."""
        if len(self._ended) <= self._most:
            return self._ended
        best = self._leading()
        spread = np.linspace(0, len(self._ended) - 1, self._most - len(best)).round().astype(int)
        return sorted({*best, *(self._ended[i] for i in spread)})

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
        for name, distribution in self._distributions.items():
            internal = distribution.to_internal_repr(params[name])
            self._storage.set_trial_param(number, name, internal, distribution)
        self._running.add(number)

    def suggest(self, sampler: optuna.samplers.BaseSampler) -> Params:
        """Let a sampler suggest a trial, which then is under way."""
        self._storage.shown = [*self.shown, *sorted(self._running)]
        self._study.sampler = sampler
        trial = self._study.ask(self._distributions)
        self._running.add(trial.number)
        return dict(trial.params)

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


class _Storage(optuna.storages.InMemoryStorage):
    """Shows some of its trials."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []
        """Their numbers."""

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002 - there is one
        deepcopy: bool = True,  # noqa: ARG002 - nobody changes them
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials that are shown."""
        trials = [self.get_trial(number) for number in self.shown]
        return trials if states is None else [t for t in trials if t.state in states]
