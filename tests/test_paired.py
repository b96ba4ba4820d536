"""Paired tests against enumeration, scipy and closed forms."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from apgd.errors import InputError
from apgd.paired import bootstrap_difference, compare_all, mcnemar
from apgd.ranking import holm
from apgd.statistics import difference

Runs = list[dict[str, np.ndarray]]


def discordant(better: int, worse: int, same: int = 5) -> tuple[Runs, Runs]:
    """One seed and one cell, with so many examples on either side."""
    first = np.r_[np.ones(better), np.zeros(worse), np.ones(same)].astype(bool)
    second = np.r_[np.zeros(better), np.ones(worse), np.ones(same)].astype(bool)
    return [{"a": first}], [{"a": second}]


def drawn(rng: np.random.Generator, seeds: int, sizes: dict[str, int], rate: float) -> Runs:
    return [{cell: rng.random(n) < rate for cell, n in sizes.items()} for _ in range(seeds)]


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (3, 9), (10, 2), (7, 7), (40, 61), (0, 300)])
def test_one_seed_is_the_binomial_test(better: int, worse: int) -> None:
    found = mcnemar(*discordant(better, worse))
    exact = stats.binomtest(better, better + worse).pvalue
    point = stats.binom.pmf(better, better + worse, 0.5)
    assert (found.better, found.worse) == (better, worse)
    assert found.p_value == pytest.approx(exact, rel=1e-9)
    half = point / 2 if better == worse else point
    assert found.mid_p == pytest.approx(exact - half, rel=1e-9)


def test_small_probabilities_are_not_lost() -> None:
    found = mcnemar(*discordant(3000, 1000))
    assert found.p_value == pytest.approx(stats.binomtest(1000, 4000).pvalue, rel=1e-6)
    assert 0 < found.p_value < 1e-200


def test_several_seeds_are_the_sign_flips_of_examples() -> None:
    rng = np.random.default_rng(3)
    first = drawn(rng, 3, {"a": 5, "b": 4}, 0.7)
    second = drawn(rng, 3, {"a": 5, "b": 4}, 0.4)
    sums = np.concatenate(
        [sum(f[c].astype(int) - s[c] for f, s in zip(first, second, strict=True)) for c in "ab"]
    )
    totals = np.abs([np.dot(signs, sums) for signs in product((-1, 1), repeat=len(sums))])
    observed = abs(sums.sum())
    found = mcnemar(first, second)
    assert found.p_value == pytest.approx(np.mean(totals >= observed))
    assert found.mid_p == pytest.approx(
        np.mean(totals > observed) + np.mean(totals == observed) / 2
    )


def test_a_seed_twice_is_no_more_evidence() -> None:
    first, second = discordant(10, 3)
    assert mcnemar(first * 2, second * 2).p_value == pytest.approx(mcnemar(first, second).p_value)


def test_sides_can_be_exchanged_and_equal_answers_say_nothing() -> None:
    first, second = discordant(4, 9)
    there, back = mcnemar(first, second), mcnemar(second, first)
    assert (there.better, there.worse) == (back.worse, back.better)
    assert there.p_value == pytest.approx(back.p_value)
    nothing = mcnemar(first, first)
    assert (nothing.better, nothing.worse, nothing.p_value, nothing.mid_p) == (0, 0, 1, 1)


def test_numbers_are_tested_by_the_normal_distribution() -> None:
    first = [{"a": np.array([0.5, 0.75, 0.25, 1.0])}]
    second = [{"a": np.array([0.25, 0.25, 0.5, 0.75])}]
    gaps = np.array([0.25, 0.5, -0.25, 0.25])
    expected = 2 * stats.norm.sf(gaps.sum() / np.sqrt(np.sum(gaps**2)))
    assert mcnemar(first, second).p_value == pytest.approx(expected)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        hard = rng.random(60)  # examples that all seeds and both methods find equally hard
        first, second = ([{"a": rng.random(60) < hard} for _ in range(3)] for _ in range(2))
        p_values.append(mcnemar(first, second).mid_p)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.06)


def test_the_bootstrap_has_the_standard_error_of_the_examples() -> None:
    rng = np.random.default_rng(1)
    sizes = {"a": 300, "b": 120}
    first, second = drawn(rng, 1, sizes, 0.7), drawn(rng, 1, sizes, 0.6)
    boot, closed = bootstrap_difference(first, second), difference(first, second)
    assert boot.estimate == pytest.approx(closed.estimate)
    assert boot.standard_error == pytest.approx(closed.standard_error, rel=0.05)
    assert boot.half_width == pytest.approx(closed.half_width, rel=0.06)
    assert (boot.seeds, boot.examples) == (1, 420)


def test_the_bootstrap_has_the_spread_of_seeds_too() -> None:
    rng = np.random.default_rng(2)
    rates = rng.normal(0.6, 0.1, 8)
    first = [{"a": rng.random(2000) < rate} for rate in rates]
    second = [{"a": rng.random(2000) < 0.5} for _ in rates]
    boot, closed = bootstrap_difference(first, second), difference(first, second)
    assert boot.estimate == pytest.approx(closed.estimate)
    assert boot.standard_error == pytest.approx(closed.standard_error, rel=0.08)


def test_the_bootstrap_repeats_itself_and_turns_round() -> None:
    first, second = discordant(30, 12, 50)
    there = bootstrap_difference(first, second)
    assert there == bootstrap_difference(first, second)
    assert there != bootstrap_difference(first, second, seed=1)
    back = bootstrap_difference(second, first)
    assert back.estimate == -there.estimate
    assert back.low == pytest.approx(-there.high, abs=0.02)
    still = bootstrap_difference(first, first)
    assert (still.estimate, still.low, still.high, still.standard_error) == (0, 0, 0, 0)


def test_holm_counts_every_pair() -> None:
    pairs = {"x": discordant(12, 3), "y": discordant(9, 8), "z": discordant(20, 2)}
    found = compare_all(pairs)
    adjusted = holm([mcnemar(*pair).mid_p for pair in pairs.values()])
    assert [found[name].p_adjusted for name in pairs] == pytest.approx(adjusted)
    assert found["z"].p_adjusted == pytest.approx(3 * found["z"].test.mid_p)
    assert found["x"].difference == bootstrap_difference(*pairs["x"])
    assert compare_all({}) == {}


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([{"a": np.ones(3)}], [{"b": np.ones(3)}], {}, "must have the same cells"),
        ([{"a": np.ones(3)}], [{"a": np.ones(4)}], {}, "the same seeds and examples"),
        ([{"a": np.ones(3)}], [{"a": np.ones(3)}], {"level": 1.0}, "level must be between 0 and 1"),
        ([{"a": np.ones(3)}], [{"a": np.ones(3)}], {"resamples": 1}, "resamples must be at least"),
    ],
)
def test_bad_input_is_refused(first: Runs, second: Runs, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_difference(first, second, **options)
