"""Intervals for mean accuracies over tasks, examples and seeds.

What is measured is a mean over cells (a cell is one task's examples under one condition) of the
accuracy on that cell, averaged over seeds. Two things make it uncertain: the test examples are a
sample, and so are the seeds. The variance of the estimate is taken as the sum of two parts:

* examples, stratified by cell: with T cells, cell t holding n_t examples, and s²_t the sample
  variance over examples of the seed-averaged result, this is Σ_t (s²_t / n_t) / T²;
* seeds: the sample variance of the S seed means, divided by S; absent when there is one seed.

All seeds are tested on the same examples, so the two effects are crossed and not nested. The part
of the spread that belongs to a seed and an example together enters both terms: the sum counts that
interaction twice, which makes the intervals slightly wide and never too narrow on that account.

The quantile is that of Student's t with the degrees of freedom of Welch and Satterthwaite, where
the example part has Σ_t (n_t - 1) and the seed part S - 1. With one seed the interval speaks of
these very experts on new examples; nothing is said about other seeds. The intervals are Wald
intervals: a cell that is answered entirely right or entirely wrong contributes no width.

Every function here is a mean of some number per example, so all of them reach `_interval`; a ratio
is brought to that form by linearising it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from apgd.errors import InputError

LEVEL = 0.95
"""Confidence level where none is given."""

Runs = Sequence[Mapping[str, np.ndarray]]
"""One mapping per seed, from cells to arrays (examples,): booleans for right and wrong, or numbers.
The examples of a cell are the same, and in the same order, for every seed."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and how far to trust it, in the unit of the data (shares, not percent)."""

    estimate: float
    """Mean over cells, examples and seeds."""
    low: float
    """Lower end of the interval; not clipped, so it may lie outside [0, 1]."""
    high: float
    """Upper end of the interval."""
    standard_error: float
    """Square root of the variance of the estimate."""
    df: float
    """Degrees of freedom of Student's t; infinite where nothing varies."""
    seeds: int
    """Seeds behind the estimate; with 1 the interval covers the choice of examples alone."""
    examples: int
    """Examples behind the estimate, over all cells, each counted once."""

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def includes_zero(self) -> bool:
        """Whether 0 is in the closed interval: for a difference, "not distinguishable"."""
        return self.low <= 0.0 <= self.high

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the t test that the true value is `null`."""
        distance = abs(self.estimate - null)
        if self.standard_error == 0.0:
            return 1.0 if distance == 0.0 else 0.0
        return float(2 * stats.t.sf(distance / self.standard_error, self.df))


def accuracy(runs: Runs, *, level: float = LEVEL) -> Interval:
    """Mean accuracy over cells, averaged over seeds, with its interval.

    Args:
        runs: per seed, the results by cell, each (examples,).
        level: confidence level in (0, 1).

    Raises:
        InputError: without seeds or cells, when seeds differ in their cells or in the length of a
            cell, or when a cell has fewer than two examples.
    """
    return _interval(_stacked(runs), level)


def difference(first: Runs, second: Runs, *, level: float = LEVEL) -> Interval:
    """Mean accuracy of `first` minus that of `second`, paired by example and by seed.

    Args:
        first: per seed, the results by cell, each (examples,).
        second: the same seeds, cells and examples under the other method.
        level: confidence level in (0, 1).

    Raises:
        InputError: as for `accuracy`, and when the two do not match.
    """
    ours, theirs = matching(first, second)
    return _interval({cell: ours[cell] - theirs[cell] for cell in ours}, level)


def relative(runs: Runs, reference: Runs, *, level: float = LEVEL) -> Interval:
    """Mean over cells of accuracy divided by the reference's accuracy, averaged over seeds.

    The interval is that of the delta method. For one seed and cell, with accuracies a and e and
    R = a / e, the ratio moves by (c - R d) / e when an example with results c and d is added; the
    interval is the one of the mean of R + (c - R d) / e, which is paired by example and whose mean
    is R itself.

    Args:
        runs: per seed, the results by cell, each (examples,).
        reference: the same seeds, cells and examples for what is divided by (the experts).
        level: confidence level in (0, 1).

    Raises:
        InputError: as for `difference`, and when the reference has accuracy 0 on a cell.
    """
    ours, theirs = matching(runs, reference)
    linear = {}
    for cell, results in ours.items():
        base = theirs[cell].mean(axis=1, keepdims=True)  # (seeds, 1)
        if not np.all(base > 0):
            raise InputError(f"the reference must be above 0 on every cell, but is 0 on {cell!r}")
        ratio = results.mean(axis=1, keepdims=True) / base
        linear[cell] = ratio + (results - ratio * theirs[cell]) / base
    return _interval(linear, level)


def _interval(values: Mapping[str, np.ndarray], level: float) -> Interval:
    """The interval of a mean; `values` maps cells to float arrays (seeds, examples)."""
    if not 0.0 < level < 1.0:
        raise InputError(f"level must be between 0 and 1, but got {level}")
    cells = len(values)
    seeds = next(iter(values.values())).shape[0]
    seed_means = np.mean([block.mean(axis=1) for block in values.values()], axis=0)  # (seeds,)
    parts = [
        (
            sum(_variance(block.mean(axis=0)) / block.shape[1] for block in values.values())
            / cells**2,
            sum(block.shape[1] - 1 for block in values.values()),
        )
    ]
    if seeds > 1:
        parts.append((_variance(seed_means) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    df = variance**2 / spread if spread > 0 else math.inf
    estimate = float(seed_means.mean())
    error = math.sqrt(variance)
    # With infinite degrees of freedom there is no spread, and any finite quantile gives width 0.
    reach = float(stats.t.ppf((1 + level) / 2, df)) * error if error > 0 else 0.0
    return Interval(
        estimate=estimate,
        low=estimate - reach,
        high=estimate + reach,
        standard_error=error,
        df=df,
        seeds=seeds,
        examples=sum(block.shape[1] for block in values.values()),
    )


def _variance(values: np.ndarray) -> float:
    """Sample variance; exactly 0 for equal values, which rounding of their mean would blur."""
    if np.all(values == values[0]):
        return 0.0
    return float(values.var(ddof=1))


def _stacked(runs: Runs) -> dict[str, np.ndarray]:
    """Cells mapped to float arrays (seeds, examples), after checking that they can be stacked."""
    if not runs:
        raise InputError("at least one seed is needed, but got none")
    cells = sorted(runs[0])
    if not cells:
        raise InputError("at least one cell is needed, but got none")
    for run in runs:
        if sorted(run) != cells:
            raise InputError(f"all seeds must have the cells {cells}, but one has {sorted(run)}")
    stacked = {}
    for cell in cells:
        arrays = [np.asarray(run[cell], dtype=np.float64) for run in runs]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1 or len(shapes[0]) != 1:
            raise InputError(
                f"cell {cell!r} must be one array of the same length for every seed, "
                f"but the shapes are {shapes}"
            )
        if len(arrays[0]) < 2:
            raise InputError(
                f"cell {cell!r} must have at least 2 examples, but has {len(arrays[0])}"
            )
        stacked[cell] = np.stack(arrays)
    return stacked


def matching(first: Runs, second: Runs) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Cells mapped to float arrays (seeds, examples), of both sides.

    Raises:
        InputError: as for `accuracy`, and where the two differ in seeds, cells or examples.
    """
    ours, theirs = _stacked(first), _stacked(second)
    if ours.keys() != theirs.keys():
        raise InputError(
            f"both sides must have the same cells, but one has {list(ours)} "
            f"and the other {list(theirs)}"
        )
    for cell, block in ours.items():
        if block.shape != theirs[cell].shape:
            raise InputError(
                f"both sides must have the same seeds and examples on cell {cell!r}, "
                f"but (seeds, examples) are {block.shape} and {theirs[cell].shape}"
            )
    return ours, theirs
