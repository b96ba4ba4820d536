"""Ranks, tests and groups against values worked out by hand or by other means."""

import math

import numpy as np
import pytest
from scipy import stats

from apgd import InputError
from apgd.ranking import (
    critical_distance,
    friedman,
    groups,
    holm,
    ranks,
    signed_rank_p_values,
)


def test_ties_share_the_mean_of_their_ranks() -> None:
    scores = np.array([[0.9, 0.5, 0.9, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]])
    expected = [[1.5, 3, 1.5, 4], [2.5, 2.5, 2.5, 2.5], [4, 3, 2, 1]]
    np.testing.assert_array_equal(ranks(scores), expected)


def test_ranks_of_a_cell_add_up_and_ignore_monotone_changes() -> None:
    scores = np.random.default_rng(0).random((7, 6)).round(1)
    found = ranks(scores)
    np.testing.assert_allclose(found.sum(axis=1), 6 * 7 / 2)
    np.testing.assert_array_equal(found, ranks(np.exp(3 * scores)))


def test_friedman_by_hand() -> None:
    # Three methods, four cells, always in the same order: χ² = n (k − 1) = 8, its greatest value.
    scores = np.array([[3.0, 2.0, 1.0]] * 4)
    found = friedman(scores)
    assert found.statistic == pytest.approx(8.0)
    assert found.df == 2
    assert found.p_value == pytest.approx(math.exp(-4))  # χ² with 2 degrees is exponential


@pytest.mark.parametrize("digits", [1, 8], ids=["with ties", "without ties"])
def test_friedman_is_that_of_scipy(digits: int) -> None:
    scores = np.random.default_rng(1).random((9, 5)).round(digits)
    expected = stats.friedmanchisquare(*scores.T)
    assert friedman(scores).statistic == pytest.approx(expected.statistic)
    assert friedman(scores).p_value == pytest.approx(expected.pvalue)


def test_friedman_of_equal_methods_finds_nothing() -> None:
    found = friedman(np.full((5, 4), 0.7))
    assert (found.statistic, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_critical_distance_is_that_of_published_tables(methods: int, q: float) -> None:
    # q: Demšar 2006, table 5, two-tailed Nemenyi test at 0.05
    distance = critical_distance(methods, 30)
    assert distance == pytest.approx(q * math.sqrt(methods * (methods + 1) / 180), abs=2e-3)


def test_critical_distance_shrinks_with_cells_and_grows_with_methods() -> None:
    assert critical_distance(5, 40) == pytest.approx(critical_distance(5, 10) / 2)
    assert critical_distance(6, 10) > critical_distance(5, 10)
    assert critical_distance(5, 10, 0.99) > critical_distance(5, 10)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.6 times 4, 3, 2, 1, and never below the one before.
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_signed_ranks_by_hand() -> None:
    # Five cells, the first always better by another margin: p = 2 / 2⁵, the least there is.
    first = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    margins = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    scores = np.stack([first + margins, first], axis=1)
    assert signed_rank_p_values(scores) == {(0, 1): pytest.approx(2 / 2**5)}


def test_signed_ranks_of_all_pairs_are_corrected() -> None:
    scores = np.random.default_rng(2).random((12, 3))
    pairs = [(0, 1), (0, 2), (1, 2)]
    raw = [stats.wilcoxon(scores[:, i] - scores[:, j]).pvalue for i, j in pairs]
    assert signed_rank_p_values(scores) == pytest.approx(dict(zip(pairs, holm(raw), strict=True)))


def test_methods_that_are_always_tied_do_not_differ() -> None:
    scores = np.repeat(np.random.default_rng(3).random((6, 1)), 2, axis=1)
    assert signed_rank_p_values(scores) == {(0, 1): 1.0}


def test_groups_are_the_largest_runs_within_the_distance() -> None:
    assert groups([1.0, 2.0, 3.0, 7.5, 8.0], 1.5) == [(0, 1), (1, 2), (3, 4)]
    assert groups([3.0, 1.0, 2.0], 5.0) == [(1, 2, 0)]
    assert groups([1.0, 4.0], 1.0) == [(0,), (1,)]
    assert groups([2.0, 2.0], 0.5) == [(0, 1)]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((3, 1)), "at least 1 cell and 2 methods, but have the shape"),
        (np.zeros(4), "at least 1 cell and 2 methods"),
        (np.array([[0.1, np.nan]]), "finite, but 1 are not"),
    ],
)
def test_bad_scores_are_refused(scores: np.ndarray, message: str) -> None:
    for function in (ranks, friedman, signed_rank_p_values):
        with pytest.raises(InputError, match=message):
            function(scores)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 methods and 1 cell, but got 1 and 5"):
        critical_distance(1, 5)
    with pytest.raises(InputError, match="level must be between 0 and 1, but got 1"):
        critical_distance(3, 5, 1.0)
    with pytest.raises(InputError, match=r"p-values must lie in \[0, 1\], but got 1.5"):
        holm([1.5])
