"""Two methods on the same examples: paired tests and a paired bootstrap.

What is compared is as in `apgd.statistics`: right or wrong (or a number) by seed, cell and example,
under the one method and under the other. A difference d is that of one example at one seed.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy import stats

from apgd.errors import InputError
from apgd.ranking import holm
from apgd.statistics import LEVEL, Interval, Runs, matching

RESAMPLES = 4000
"""Resamples of a bootstrap where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test that two methods answer right equally often."""

    better: int
    """Examples on which the first method did better, over all seeds together."""
    worse: int
    """Examples on which it did worse."""
    p_value: float
    """Two-sided, exact."""
    mid_p: float
    """The same with half the weight on outcomes as likely as the observed one: nearly unbiased,
    where the exact test is cautious."""


def mcnemar(first: Runs, second: Runs) -> McNemar:
    """McNemar's exact test, for one seed or several.

    With one seed only examples count on which one method is right and the other wrong; under the
    null hypothesis each falls to either side with probability 1/2 (McNemar, Psychometrika 1947; the
    mid-p-value: Fagerland, Lydersen and Laake, BMC Medical Research Methodology 2013). All seeds
    are tested on the same examples, so with several the example is the unit: its differences are
    added up over seeds, and the sums' signs are flipped at random, every one with probability 1/2.
    The distribution of their total is calculated and not sampled. The test speaks of these seeds on
    new examples.

    Of scores that are not right or wrong the total is taken to be normally distributed, with the
    sum of the squares as its variance.

    Raises:
        InputError: where the two differ in seeds, cells or examples, or have too few of them.
    """
    ours, theirs = matching(first, second)
    sums = np.concatenate([(ours[cell] - theirs[cell]).sum(axis=0) for cell in ours])
    better, worse = int(np.sum(sums > 0)), int(np.sum(sums < 0))
    if better + worse == 0:
        return McNemar(better=0, worse=0, p_value=1.0, mid_p=1.0)
    if not np.array_equal(sums, np.round(sums)):
        p_value = float(2 * stats.norm.sf(abs(sums.sum()) / np.sqrt(np.sum(sums**2))))
        return McNemar(better=better, worse=worse, p_value=p_value, mid_p=p_value)
    sizes = Counter(int(size) for size in np.abs(sums) if size)
    observed = abs(int(sums.sum()))
    beyond, equal = _tail(sizes, observed)
    if observed:  # the other side is as likely
        beyond, equal = 2 * beyond, 2 * equal
    else:
        beyond = 1 - equal
    return McNemar(
        better=better, worse=worse, p_value=min(1.0, beyond + equal), mid_p=beyond + equal / 2
    )


def _tail(sizes: Mapping[int, int], observed: int) -> tuple[float, float]:
    """P(T > observed) and P(T = observed) for T = Σ ± size, signs fair and independent.

    Args:
        sizes: how many terms there are of each size.
        observed: at least 0.
    """
    most = sum(size * count for size, count in sizes.items())
    # T = 2 X − most, where X sums the terms with a plus; `weights` is the distribution of X.
    weights = np.ones(1)
    for size, count in sorted(sizes.items()):
        term = np.zeros(size * count + 1)
        term[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        weights = np.convolve(weights, term)
    at = (observed + most) // 2
    # The far end first, so that small numbers are not lost beside large ones.
    return float(np.sum(weights[:at:-1])), float(weights[at])


def bootstrap_difference(
    first: Runs,
    second: Runs,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Mean of `first` minus that of `second` over cells and seeds, with a bootstrap interval.

    Examples are drawn with replacement within their cell, the same for all seeds and both methods,
    and where there are several seeds these are drawn too, independently of the examples (Efron and
    Tibshirani, 1993, chapter 8, for pairs and strata; Owen, Annals of Applied Statistics 2007, for
    rows and columns). One fewer than there are is drawn of each, which makes the variance unbiased
    (Rao and Wu, JASA 1988). Ends are percentiles. With few seeds the interval is too short,
    as a percentile knows no t distribution; `apgd.statistics.difference` has one that is not.

    Args:
        first: per seed, the results by cell, each (examples,).
        second: the same seeds, cells and examples under the other method.
        resamples: how often is drawn.
        seed: of the drawing.
        level: confidence level in (0, 1).

    Returns:
        The interval; `standard_error` is the standard deviation of the resamples, `df` infinite.

    Raises:
        InputError: as `mcnemar` does, and for a level or a number of resamples that is no such.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"level must be between 0 and 1, but got {level}")
    if resamples < 2:
        raise InputError(f"resamples must be at least 2, but got {resamples}")
    ours, theirs = matching(first, second)
    generator = np.random.default_rng(seed)
    seeds = next(iter(ours.values())).shape[0]
    by_seed = np.zeros((resamples, seeds))  # means over cells of every resample
    estimate = 0.0
    for cell in ours:
        differences = ours[cell] - theirs[cell]  # (seeds, examples)
        estimate += float(differences.mean()) / len(ours)
        # Examples with the same differences are alike: how many of each kind are drawn is enough.
        kinds, counts = np.unique(differences, axis=1, return_counts=True)  # (seeds, kinds)
        examples = differences.shape[1]
        drawn = generator.multinomial(examples - 1, counts / examples, size=resamples)
        by_seed += drawn @ kinds.T / ((examples - 1) * len(ours))
    means = by_seed[:, 0]
    if seeds > 1:
        drawn = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
        means = (by_seed * drawn).sum(axis=1) / (seeds - 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=estimate,
        low=float(low),
        high=float(high),
        standard_error=float(means.std(ddof=1)),
        df=inf,
        seeds=seeds,
        examples=sum(block.shape[1] for block in ours.values()),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method against another on the same examples."""

    difference: Interval
    """Bootstrap interval of the mean difference."""
    test: McNemar
    p_adjusted: float
    """The test's mid-p-value with Holm's correction over all comparisons that were made."""


def compare_all(pairs: Mapping[str, tuple[Runs, Runs]]) -> dict[str, Comparison]:
    """Compare each pair's first with its second, with Holm's correction over all pairs.

    Raises:
        InputError: as `mcnemar` does.
    """
    tests = {name: mcnemar(first, second) for name, (first, second) in pairs.items()}
    adjusted = holm([test.mid_p for test in tests.values()])
    return {
        name: Comparison(
            difference=bootstrap_difference(*pairs[name]), test=test, p_adjusted=p_value
        )
        for (name, test), p_value in zip(tests.items(), adjusted, strict=True)
    }
