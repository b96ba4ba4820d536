"""Intervals against closed forms, symmetries and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from apgd.errors import InputError
from apgd.statistics import accuracy, difference, relative


def bits(right: int, total: int) -> np.ndarray:
    return np.arange(total) < right


def draw(rng: np.random.Generator, seeds: int, sizes: dict[str, int], rate: float = 0.7):
    return [{cell: rng.random(size) < rate for cell, size in sizes.items()} for _ in range(seeds)]


def test_one_seed_one_cell_is_the_textbook_interval():
    interval = accuracy([{"a": bits(30, 40)}])
    error = math.sqrt(0.75 * 0.25 * 40 / 39 / 40)
    assert interval.estimate == 0.75
    assert interval.df == pytest.approx(39)
    assert interval.standard_error == pytest.approx(error)
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 39) * error)
    assert interval.low == pytest.approx(0.75 - interval.half_width)
    assert (interval.seeds, interval.examples) == (1, 40)


def test_cells_count_alike_whatever_their_size():
    interval = accuracy([{"small": bits(5, 10), "large": bits(900, 1000)}])
    assert interval.estimate == pytest.approx((0.5 + 0.9) / 2)
    expected = (0.25 * 10 / 9 / 10 + 0.09 * 1000 / 999 / 1000) / 4
    assert interval.standard_error**2 == pytest.approx(expected)
    assert interval.df == pytest.approx(9 + 999)


def test_two_seeds_add_the_spread_of_their_means():
    # Seed means 0.5 and 0.75; seed-averaged results of the examples are 1, 1, 0.5, 0.
    interval = accuracy([{"a": np.array([1, 1, 0, 0], bool)}, {"a": np.array([1, 1, 1, 0], bool)}])
    examples = np.var([1, 1, 0.5, 0], ddof=1) / 4
    seeds = np.var([0.5, 0.75], ddof=1) / 2
    assert interval.estimate == pytest.approx(0.625)
    assert interval.standard_error**2 == pytest.approx(examples + seeds)
    df = (examples + seeds) ** 2 / (examples**2 / 3 + seeds**2 / 1)
    assert interval.df == pytest.approx(df)
    assert interval.half_width == pytest.approx(
        stats.t.ppf(0.975, df) * math.sqrt(examples + seeds)
    )


def test_repeating_a_seed_adds_nothing():
    run = {"a": bits(13, 20), "b": bits(4, 9)}
    once, thrice = accuracy([run]), accuracy([run, run, run])
    assert thrice.estimate == pytest.approx(once.estimate)
    assert thrice.half_width == pytest.approx(once.half_width)
    assert thrice.df == pytest.approx(once.df)


def test_order_of_examples_cells_and_seeds_does_not_matter():
    rng = np.random.default_rng(3)
    sizes = {"a": 50, "b": 31}
    first, second = draw(rng, 3, sizes), draw(rng, 3, sizes, 0.6)
    order = {cell: rng.permutation(size) for cell, size in sizes.items()}

    def shuffled(runs):
        moved = [{cell: run[cell][order[cell]] for cell in ("b", "a")} for run in runs]
        return [moved[2], moved[0], moved[1]]

    for function in (difference, relative):
        plain, moved = function(first, second), function(shuffled(first), shuffled(second))
        assert moved.estimate == pytest.approx(plain.estimate)
        assert moved.low == pytest.approx(plain.low)
        assert moved.df == pytest.approx(plain.df)


def test_difference_is_antisymmetric_and_pairs_examples():
    rng = np.random.default_rng(5)
    first = draw(rng, 1, {"a": 400})
    second = [{"a": run["a"] ^ (rng.random(400) < 0.02)} for run in first]
    forth, back = difference(first, second), difference(second, first)
    assert forth.estimate == pytest.approx(-back.estimate)
    assert forth.low == pytest.approx(-back.high)
    # Two methods that rarely disagree differ by far less than either is uncertain.
    assert forth.half_width < accuracy(first).half_width / 2


def test_difference_to_itself_is_exactly_zero():
    runs = draw(np.random.default_rng(0), 3, {"a": 20, "b": 30})
    interval = difference(runs, runs)
    assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert interval.includes_zero
    assert interval.p_value() == 1.0


def test_p_value_agrees_with_the_interval():
    rng = np.random.default_rng(8)
    first, second = draw(rng, 3, {"a": 80}, 0.8), draw(rng, 3, {"a": 80}, 0.6)
    interval = difference(first, second)
    assert interval.p_value(interval.low) == pytest.approx(0.05)
    assert interval.p_value(interval.high) == pytest.approx(0.05)
    wider = difference(first, second, level=1 - interval.p_value())
    assert min(abs(wider.low), abs(wider.high)) == pytest.approx(0, abs=1e-9)


def test_everything_right_has_no_width():
    interval = accuracy([{"a": bits(7, 7)}, {"a": bits(7, 7)}])
    assert (interval.low, interval.high, interval.df) == (1.0, 1.0, math.inf)
    assert interval.p_value(0.5) == 0.0


def test_relative_to_itself_is_one_without_width():
    runs = draw(np.random.default_rng(2), 2, {"a": 30, "b": 45})
    interval = relative(runs, runs)
    assert interval.estimate == pytest.approx(1.0)
    assert interval.half_width == pytest.approx(0.0, abs=1e-12)


def test_relative_to_a_perfect_reference_is_the_accuracy():
    runs = draw(np.random.default_rng(2), 3, {"a": 30, "b": 45})
    perfect = [{cell: np.ones_like(values) for cell, values in run.items()} for run in runs]
    ours, plain = relative(runs, perfect), accuracy(runs)
    assert ours.estimate == pytest.approx(plain.estimate)
    assert ours.standard_error == pytest.approx(plain.standard_error)


def test_relative_agrees_with_the_bootstrap():
    rng = np.random.default_rng(11)
    expert = rng.random(300) < 0.9
    merged = expert & (rng.random(300) < 0.7)
    picks = rng.integers(0, 300, (4000, 300))
    ratios = merged[picks].mean(axis=1) / expert[picks].mean(axis=1)
    interval = relative([{"a": merged}], [{"a": expert}])
    assert interval.estimate == pytest.approx(merged.mean() / expert.mean())
    assert interval.standard_error == pytest.approx(ratios.std(), rel=0.05)


@pytest.mark.parametrize("seeds", [1, 3])
def test_coverage(seeds):
    """Examples of differing difficulty, seeds of differing quality, cells of differing size."""
    rng = np.random.default_rng(seeds)
    sizes = {"a": 60, "b": 90, "c": 150}
    repeats, hits = 600, 0
    for _ in range(repeats):
        difficulty = {cell: rng.uniform(0.4, 0.9, size) for cell, size in sizes.items()}
        # One seed says nothing about others, so it is only asked about examples.
        quality = rng.normal(0, 0.03 if seeds > 1 else 0.0, seeds)
        runs = [
            {cell: rng.random(len(rate)) < rate + shift for cell, rate in difficulty.items()}
            for shift in quality
        ]
        interval = accuracy(runs)
        hits += interval.low <= 0.65 <= interval.high
    assert 0.92 <= hits / repeats <= 0.99


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "at least one seed"),
        ([{}], "at least one cell"),
        ([{"a": bits(0, 0)}], "at least 2 examples"),
        ([{"a": bits(1, 3)}, {"b": bits(1, 3)}], "all seeds must have the cells"),
        ([{"a": bits(1, 3)}, {"a": bits(1, 4)}], "same length"),
        ([{"a": np.zeros((2, 2))}], "one array"),
    ],
)
def test_what_cannot_be_averaged_is_refused(runs, words):
    with pytest.raises(InputError, match=words):
        accuracy(runs)


def test_what_cannot_be_compared_is_refused():
    run = {"a": bits(1, 3)}
    with pytest.raises(InputError, match="same cells"):
        difference([run], [{"b": bits(1, 3)}])
    with pytest.raises(InputError, match="same seeds and examples"):
        difference([run], [run, run])
    with pytest.raises(InputError, match="above 0"):
        relative([run], [{"a": bits(0, 3)}])
    with pytest.raises(InputError, match="level"):
        accuracy([run], level=95)
