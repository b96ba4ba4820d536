"""Metrics as means: every score is the mean of one number per example.

That is what lets all intervals, paired differences and ratios be those of a mean
(apgd.statistics), whatever the metric.
"""

import numpy as np

from apgd.errors import InputError


def spearman_parts(
    answered: np.ndarray,  # (n,)
    true: np.ndarray,  # (n,)
) -> np.ndarray:  # float64, (n,)
    """Spearman's rank correlation ρ, as one number per example whose mean is ρ.

    With standardised ranks x and y the parts are x·y − ρ·(x² + y²)/2 + ρ: the linearisation of the
    correlation coefficient around the sample, so that their spread is that of ρ (the delta method;
    ranks are taken as given). Tied values share their mean rank. Where one side is constant, no
    ranking exists and ρ counts as 0.

    Raises:
        InputError: for arrays of different lengths or with values that are not finite.
    """
    answered, true = np.asarray(answered, np.float64), np.asarray(true, np.float64)
    if answered.shape != true.shape or answered.ndim != 1:
        raise InputError(
            f"answers and truth must be two lists of one length, but have the shapes "
            f"{answered.shape} and {true.shape}"
        )
    if not (np.isfinite(answered).all() and np.isfinite(true).all()):
        raise InputError("answers and truth must be finite numbers")
    if len(true) == 0 or np.ptp(answered) == 0.0 or np.ptp(true) == 0.0:
        return np.zeros(len(true))
    from scipy.stats import rankdata  # half a second to import, and few processes need it

    x, y = (_standardised(rankdata(values)) for values in (answered, true))
    rho = float(np.mean(x * y))
    parts: np.ndarray = x * y - rho * (x**2 + y**2) / 2 + rho
    return parts


def _standardised(values: np.ndarray) -> np.ndarray:
    standard: np.ndarray = (values - values.mean()) / values.std()
    return standard
