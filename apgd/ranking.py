"""Which of many methods are better: ranks over several data sets, and tests that ask for all pairs.

Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006. Scores
are (cells, methods), higher is better; a cell is what all methods were scored on, such as one task
at one seed. All tests here take cells for independent samples of what one wants to speak about.
Tasks of one suite share a model and a maker, and cells that differ in their seed alone share their
test examples: p-values and distances are then too small, and are to be read as a guide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from apgd.errors import InputError
from apgd.statistics import LEVEL


def ranks(scores: np.ndarray) -> np.ndarray:
    """The rank of every method on every cell, 1 for the best; ties get the mean of their ranks.

    Args:
        scores: (cells, methods), higher is better.

    Returns:
        (cells, methods).

    Raises:
        InputError: where scores are not a table of finite numbers with at least one cell and two
            methods.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise InputError(
            f"scores must be (cells, methods) with at least 1 cell and 2 methods, "
            f"but have the shape {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise InputError(f"scores must be finite, but {np.sum(~np.isfinite(scores))} are not")
    found: np.ndarray = stats.rankdata(-scores, axis=1)
    return found


@dataclass(frozen=True, kw_only=True)
class Friedman:
    """Friedman's test that all methods are alike."""

    statistic: float
    """χ²_F, corrected for ties."""
    df: int
    """Degrees of freedom, one less than the number of methods."""
    p_value: float
    """From the χ² distribution; 1 where no cell tells any two methods apart."""


def friedman(scores: np.ndarray) -> Friedman:
    """Friedman's test of scores (cells, methods).

    Raises:
        InputError: as `ranks` does.
    """
    table = ranks(scores)
    cells, methods = table.shape
    # The variance of the ranks within cells, which ties make smaller than k (k + 1) / 12.
    spread = float(np.sum((table - (methods + 1) / 2) ** 2)) / (cells * (methods - 1))
    if spread == 0.0:
        return Friedman(statistic=0.0, df=methods - 1, p_value=1.0)
    between = float(np.sum((table.mean(axis=0) - (methods + 1) / 2) ** 2))
    statistic = cells * between / spread
    p_value = float(stats.chi2.sf(statistic, methods - 1))
    return Friedman(statistic=statistic, df=methods - 1, p_value=p_value)


def critical_distance(methods: int, cells: int, level: float = LEVEL) -> float:
    """Nemenyi's: average ranks that are further apart differ, at this level for all pairs together.

    Args:
        methods: how many were ranked.
        cells: on how many cells.
        level: confidence level in (0, 1).

    Raises:
        InputError: where there are fewer than two methods or no cell, or the level is no such.
    """
    if methods < 2 or cells < 1:
        raise InputError(
            f"a critical distance needs at least 2 methods and 1 cell, "
            f"but got {methods} and {cells}"
        )
    if not 0.0 < level < 1.0:
        raise InputError(f"level must be between 0 and 1, but got {level}")
    quantile = float(stats.studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * cells))


def groups(average_ranks: Sequence[float], distance: float) -> list[tuple[int, ...]]:
    """The largest sets of methods whose average ranks are all within `distance` of each other.

    Args:
        average_ranks: by method, in any order.
        distance: a critical distance.

    Returns:
        Indices into `average_ranks`, best first, in order of their best member; sets of one method
        only for methods that are in no larger one.
    """
    order = sorted(range(len(average_ranks)), key=lambda index: average_ranks[index])
    found: list[tuple[int, ...]] = []
    reached = 0
    for first in range(len(order)):
        best = average_ranks[order[first]]
        last = max(
            p for p in range(first, len(order)) if average_ranks[order[p]] - best <= distance
        )
        if last + 1 > reached:  # it is not inside the one before
            found.append(tuple(order[first : last + 1]))
            reached = last + 1
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that a bound on one holds for all together (Holm).

    Raises:
        InputError: where one is not in [0, 1].
    """
    for value in p_values:
        if not 0.0 <= value <= 1.0:
            raise InputError(f"p-values must lie in [0, 1], but got {value}")
    adjusted = [1.0] * len(p_values)
    most = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = most
    return adjusted


def signed_rank_p_values(scores: np.ndarray) -> dict[tuple[int, int], float]:
    """Wilcoxon's signed-rank test for every pair of methods, with Holm's correction over all pairs.

    Cells on which a pair is tied count for neither side; a pair that is tied everywhere has 1.

    Args:
        scores: (cells, methods).

    Returns:
        Adjusted two-sided p-values by pair of indices, the smaller one first.

    Raises:
        InputError: as `ranks` does.
    """
    _ = ranks(scores)  # which checks them
    scores = np.asarray(scores, dtype=np.float64)
    pairs = list(combinations(range(scores.shape[1]), 2))
    raw = [_signed_rank(scores[:, first] - scores[:, second]) for first, second in pairs]
    return dict(zip(pairs, holm(raw), strict=True))


def _signed_rank(differences: np.ndarray) -> float:
    different = differences[differences != 0]
    if different.size == 0:
        return 1.0
    return float(stats.wilcoxon(different).pvalue)
