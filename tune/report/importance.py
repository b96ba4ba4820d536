"""How much each parameter of a method matters to its score, by Optuna's own evaluators.

The points are the settings that trials judged at their first rung. Every trial reached that one, so
stopping trials early selects nothing, and all scores are of the same validation examples. Seeds are
pooled, each with the mean of its points subtracted.
"""

import warnings
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from apgd.statistics import LEVEL
from tune.records import Record
from tune.report.axis import Axis
from tune.report.trials import Setting, rungs

FEWEST_TRIALS = 12
"""With fewer, a forest or a density over several parameters says nothing."""
TARGET = 0.25
"""PED-ANOVA asks what is particular about this share of the settings, the best ones."""
SUBSETS = 200
"""Subsets of the trials behind every interval."""
LEFT_OUT = 0.2
"""Share of the trials that each of them lacks."""
_FEW_VALUES = 8
_SEED = 0
_PED_ANOVA = PedAnovaImportanceEvaluator(
    target_quantile=TARGET, region_quantile=1.0, evaluate_on_local=True
)
# Trees of Optuna's default depth fit every point, noise included, and take quadratic time.
_TREES, _DEPTH = 64, 6


class Missing(Enum):
    """Why there is no importance to show."""

    TRIALS = f"fewer than {FEWEST_TRIALS} trials"
    PARAMETERS = "fewer than two parameters that vary"
    SCORES = "the same score for every setting"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """How much one parameter matters."""

    name: str
    ped_anova: float
    """Share of what sets the best settings apart; over the parameters these add up to 1."""
    low: float
    """Lower end of the interval of `ped_anova` over the choice of trials."""
    high: float
    """Upper end of it."""
    fanova: float
    """Share of a random forest's variance that the parameter explains by itself."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The parameters of one method."""

    share: float
    """Of the validation examples, on which the settings were judged."""
    trials: int
    settings: int
    weights: tuple[Weight, ...]
    """The most important by PED-ANOVA first."""


def importance(trials: Sequence[Record], axes: Sequence[Axis]) -> Importance | Missing:
    """How much each parameter matters in the trials of one method.

    PED-ANOVA (Watanabe et al., IJCAI 2023) compares how densely the best settings and all settings
    lie along a parameter, so a search that looked more often at good values is no disadvantage.
    fANOVA (Hutter et al., ICML 2014) splits the variance of a random forest's prediction.

    Args:
        trials: of one method, all seeds; those that failed have no part in it.
        axes: the parameters to consider.
    """
    first = {index: rung[0] for index, trial in enumerate(trials) if (rung := rungs(trial))}
    if not first:
        return Missing.TRIALS
    # Where trials began on different shares, those of the most common one are comparable.
    share, _ = Counter(rung.share for rung in first.values()).most_common(1)[0]
    judged = {index: rung for index, rung in first.items() if rung.share == share}
    if len(judged) < FEWEST_TRIALS:
        return Missing.TRIALS
    settings = [setting for rung in judged.values() for setting in rung.settings]
    owners = np.repeat(list(judged), [len(rung.settings) for rung in judged.values()])  # (n,)
    seeds = np.array([trials[owner].seed for owner in owners])  # (n,)
    varying = [axis for axis in axes if _varies(settings, axis.name)]
    if len(varying) < 2:
        return Missing.PARAMETERS
    scores = np.array([setting.value for setting in settings])  # (n,)
    for seed in np.unique(seeds):
        scores[seeds == seed] -= scores[seeds == seed].mean()
    if np.ptp(scores) < 1e-12:
        return Missing.SCORES
    points = _points(settings, varying, scores)
    names = [axis.name for axis in varying]
    with _quiet():
        whole = optuna.create_study(
            storage=(storage := optuna.storages.InMemoryStorage()),
            study_name="settings",
            direction="maximize",
        )
        whole.add_trials(points)
        ped_anova = _evaluated(whole, _PED_ANOVA, names, normalize=True)
        forest = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=_SEED)
        fanova = _evaluated(whole, forest, names, normalize=False)
        stored = whole.get_trials(deepcopy=False)
        draws = np.array(
            [
                _evaluated(_Part(storage, [stored[i] for i in kept]), _PED_ANOVA, names)
                for kept in _subsets(owners)
            ]
        )  # (subsets, parameters)
    low, high = _interval(np.array(ped_anova), draws, len(judged))
    weights = [
        Weight(
            name=name,
            ped_anova=float(ped_anova[place]),
            low=float(low[place]),
            high=float(high[place]),
            fanova=float(fanova[place]),
        )
        for place, name in enumerate(names)
    ]
    return Importance(
        share=share,
        trials=len(judged),
        settings=len(settings),
        weights=tuple(sorted(weights, key=lambda weight: -weight.ped_anova)),
    )


def _varies(settings: Sequence[Setting], name: str) -> bool:
    """Whether a parameter is a number in every setting, and not always the same."""
    values = [setting.params.get(name) for setting in settings]
    return all(isinstance(value, int | float) for value in values) and len(set(values)) > 1


def _points(
    settings: Sequence[Setting], axes: Sequence[Axis], scores: np.ndarray
) -> list[FrozenTrial]:
    """Optuna's trials, one per setting."""
    columns: dict[str, list[float]] = {}
    space: dict[str, BaseDistribution] = {}
    for axis in axes:
        values = np.array([setting.params[axis.name] for setting in settings], dtype=np.float64)
        distinct = np.unique(values)
        if len(distinct) <= _FEW_VALUES:
            # On a grid the places between its values do not exist, so they must not count.
            columns[axis.name] = np.searchsorted(distinct, values).tolist()
            space[axis.name] = IntDistribution(0, len(distinct) - 1)
        else:
            # Optuna's fANOVA ignores that a distribution is logarithmic.
            scaled = np.log(values) if axis.log and distinct[0] > 0 else values
            columns[axis.name] = scaled.tolist()
            space[axis.name] = FloatDistribution(float(scaled.min()), float(scaled.max()))
    return [
        create_trial(
            params={name: column[index] for name, column in columns.items()},
            distributions=space,
            value=float(score),
        )
        for index, score in enumerate(scores)
    ]


class _Part(optuna.Study):
    """The stored study with a part of its trials."""

    def __init__(self, storage: optuna.storages.BaseStorage, trials: list[FrozenTrial]) -> None:
        super().__init__("settings", storage)
        self._kept = trials

    def get_trials(
        self,
        deepcopy: bool = True,  # noqa: ARG002 - Optuna's interface
        states: Container[TrialState] | None = None,  # noqa: ARG002 - all are complete
    ) -> list[FrozenTrial]:
        return self._kept


def _subsets(owners: np.ndarray) -> Iterator[np.ndarray]:  # (n,) the trial of each setting
    """The settings' indices, a random part of the trials left out each time."""
    rng = np.random.default_rng(_SEED)
    trials = np.unique(owners)
    kept = len(trials) - _left_out(len(trials))
    for _ in range(SUBSETS):
        yield np.flatnonzero(np.isin(owners, rng.choice(trials, kept, replace=False)))


def _left_out(trials: int) -> int:
    return max(1, round(trials * LEFT_OUT))


def _interval(
    whole: np.ndarray, draws: np.ndarray, trials: int
) -> tuple[np.ndarray, np.ndarray]:  # (parameters,) each
    """The delete-d jackknife's interval, from the spread of estimates over subsets of trials.

    The spread over subsets of n - d of n trials is narrower than that of the estimate by the factor
    √(d / (n - d)). Bootstrap resamples would repeat trials, and PED-ANOVA takes a value that is
    there twice for one that was preferred.

    Args:
        whole: (parameters,) the estimate from all trials.
        draws: (subsets, parameters) those from the subsets.
        trials: n.
    """
    missing = _left_out(trials)
    scale = np.sqrt((trials - missing) / missing)
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)  # (2, parameters)
    low, high = np.clip(whole + scale * (ends - whole), 0.0, 1.0)
    return np.minimum(low, whole), np.maximum(high, whole)


def _evaluated(
    study: optuna.Study,
    evaluator: BaseImportanceEvaluator,
    names: list[str],
    *,
    normalize: bool = True,
) -> list[float]:
    found = get_param_importances(study, evaluator=evaluator, params=names, normalize=normalize)
    return [float(found[name]) for name in names]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line per study, and its warnings about ties and young features."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
