"""How much of the spread of a table comes from its rows, how much from its columns.

The model is y_ij = μ + a_i + b_j + e_ij with independent normal effects, one value per cell; e
holds the interaction of row and column too. Mean squares give unbiased estimates of the variances
(Searle, Casella and McCulloch, Variance Components, 1992, chapter 4), which may be negative.
Intervals are generalised confidence intervals (Weerahandi, Exact Statistical Methods for Data
Analysis, 1995): the sums of squares over their expectations are independent χ² variables, so
putting drawn ones in their place gives draws of the variances.
"""

from dataclasses import dataclass

import numpy as np

from apgd.errors import InputError
from apgd.statistics import LEVEL

_DRAWS = 200_000


@dataclass(frozen=True, kw_only=True)
class Component:
    """The standard deviation that one source brings in, in the unit of the data."""

    estimate: float
    """Root of the estimated variance; 0 where that is negative."""
    low: float
    high: float
    """Ends of the interval, at least 0."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """Standard deviations of a two-way table."""

    rows: Component
    columns: Component
    rest: Component
    """Of what neither row nor column says: their interaction, and anything else."""


def two_way(values: np.ndarray, *, level: float = LEVEL, seed: int = 0) -> Components:
    """Estimate the components of a table with one value per cell.

    Args:
        values: (rows, columns).
        level: confidence level in (0, 1).
        seed: of the draws.

    Raises:
        InputError: where the table has fewer than 2 rows or columns, or a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise InputError(
            f"values must be a table of finite numbers with at least 2 rows and 2 columns, "
            f"but have the shape {values.shape}"
        )
    if not 0.0 < level < 1.0:
        raise InputError(f"level must be between 0 and 1, but got {level}")
    m, n = values.shape
    means = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    squares = np.array([
        n * np.sum((means[0] - values.mean()) ** 2),
        m * np.sum((means[1] - values.mean()) ** 2),
        np.sum((values - means[0] - means[1] + values.mean()) ** 2),
    ])  # fmt: skip
    df = np.array([m - 1, n - 1, (m - 1) * (n - 1)])
    drawn = np.random.default_rng(seed).chisquare(df, size=(_DRAWS, 3))
    found = _variances(squares / df, m, n)
    draws = _variances(squares / drawn, m, n)  # (draws, 3)
    ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)  # (2, 3)

    def component(index: int) -> Component:
        low, high = np.sqrt(np.maximum(ends[:, index], 0))
        estimate = float(np.sqrt(max(found[index], 0.0)))
        return Component(estimate=estimate, low=float(low), high=float(high))

    return Components(rows=component(0), columns=component(1), rest=component(2))


def _variances(squares: np.ndarray, m: int, n: int) -> np.ndarray:
    """Variances of rows, columns and rest from their mean squares, both (..., 3)."""
    rest = squares[..., 2]
    return np.stack([(squares[..., 0] - rest) / n, (squares[..., 1] - rest) / m, rest], axis=-1)
