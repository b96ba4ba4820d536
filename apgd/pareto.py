"""Which points of several objectives no other point beats."""

import numpy as np

from apgd.errors import InputError


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which points are on the Pareto front, every objective being maximised.

    A point is on it where no other is at least as good in every objective and better in one; of
    equal points either all are, or none.

    Args:
        points: the objectives of each point, (n, d); n may be 0.

    Returns:
        (n,), booleans.

    Raises:
        InputError: where `points` is not (n, d) with d ≥ 1, or not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise InputError(f"points must be (n, d) with d of at least 1, but got {points.shape}")
    if not np.isfinite(points).all():
        raise InputError(f"points must be finite, but {int((~np.isfinite(points)).sum())} are not")
    on_front = np.ones(len(points), dtype=bool)
    for index, point in enumerate(points):
        beats = (points >= point).all(axis=1) & (points > point).any(axis=1)  # (n,)
        on_front[index] = not beats.any()
    return on_front
