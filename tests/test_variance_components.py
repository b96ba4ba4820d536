"""Components of variance against closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

from apgd.errors import InputError
from apgd.variance_components import two_way


def table(rng: np.random.Generator, m: int, n: int, sizes: tuple[float, float, float]):
    rows, columns, rest = sizes
    return (
        rows * rng.standard_normal((m, 1))
        + columns * rng.standard_normal((1, n))
        + rest * rng.standard_normal((m, n))
    )


def test_rows_alone() -> None:
    found = two_way(np.repeat([[0.1], [0.3], [0.8]], 4, axis=1))
    assert found.rows.estimate == pytest.approx(np.std([0.1, 0.3, 0.8], ddof=1))
    assert found.columns.estimate == pytest.approx(0, abs=1e-9)
    assert found.rest.estimate == pytest.approx(0, abs=1e-9)
    # One mean square is left, and its interval is the textbook's.
    low, high = (np.std([0.1, 0.3, 0.8], ddof=1) * np.sqrt(2 / stats.chi2.ppf(q, 2))
                 for q in (0.975, 0.025))  # fmt: skip
    assert found.rows.low == pytest.approx(low, rel=0.02)
    assert found.rows.high == pytest.approx(high, rel=0.05)


def test_a_small_table_by_hand() -> None:
    # Means of rows 2 and 5, of columns 3, 3.5 and 4; residuals ±0.5 and 0.
    values = np.array([[1.5, 2.0, 2.5], [4.5, 5.0, 5.5]]) + np.array(
        [[0.5, 0, -0.5], [-0.5, 0, 0.5]]
    )
    found = two_way(values)
    rest = 4 * 0.25 / 2
    rows = 3 * (1.5**2 + 1.5**2) / 1
    columns = 2 * (0.25 + 0.25) / 2
    assert found.rest.estimate**2 == pytest.approx(rest)
    assert found.rows.estimate**2 == pytest.approx((rows - rest) / 3)
    assert found.columns.estimate**2 == pytest.approx(max(0, (columns - rest) / 2))


def test_rows_and_columns_change_places() -> None:
    values = table(np.random.default_rng(0), 4, 6, (2, 1, 0.5))
    there, back = two_way(values), two_way(values.T)
    assert there.rows.estimate == pytest.approx(back.columns.estimate)
    assert there.rest.estimate == pytest.approx(back.rest.estimate)
    assert there.rows.high == pytest.approx(back.columns.high, rel=0.05)


def test_unit_and_origin_do_not_matter() -> None:
    values = table(np.random.default_rng(1), 3, 4, (1, 1, 1))
    there, moved = two_way(values), two_way(100 * values + 7)
    for name in ("rows", "columns", "rest"):
        for end in ("estimate", "low", "high"):
            expected = 100 * getattr(getattr(there, name), end)
            assert getattr(getattr(moved, name), end) == pytest.approx(expected, rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    truth = {"rows": 1.0, "columns": 0.3, "rest": 0.5}
    held = dict.fromkeys(truth, 0)
    for run in range(120):
        found = two_way(table(rng, 4, 5, tuple(truth.values())), seed=run)
        for name, size in truth.items():
            part = getattr(found, name)
            assert 0 <= part.low <= part.high
            held[name] += part.low <= size <= part.high
    assert all(count >= 0.9 * 120 for count in held.values()), held


@pytest.mark.parametrize("values", [np.ones((1, 4)), np.ones(4), np.array([[1, np.nan], [0, 1]])])
def test_bad_tables_are_refused(values: np.ndarray) -> None:
    with pytest.raises(InputError, match="at least 2 rows and 2 columns"):
        two_way(values)


def test_a_bad_level_is_refused() -> None:
    with pytest.raises(InputError, match="level must be between 0 and 1, but got 0"):
        two_way(np.eye(3), level=0)
