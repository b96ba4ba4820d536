import numpy as np
import pytest
from scipy import stats

from apgd.errors import InputError
from apgd.metrics import spearman_parts


def test_the_mean_of_the_parts_is_the_correlation() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 6, 400).astype(float)  # with ties, like a similarity of 0 to 5
    answered = true + rng.normal(size=400).round(1)
    expected = stats.spearmanr(answered, true).statistic
    assert spearman_parts(answered, true).mean() == pytest.approx(expected, abs=1e-12)


def test_the_spread_of_the_parts_is_that_of_the_correlation() -> None:
    rng = np.random.default_rng(1)
    found, claimed = [], []
    for _ in range(400):
        x = rng.normal(size=300)
        y = 0.8 * x + 0.6 * rng.normal(size=300)
        parts = spearman_parts(x, y)
        found.append(parts.mean())
        claimed.append(parts.std(ddof=1) / np.sqrt(300))
    # Taking ranks as given costs some accuracy: a tenth or two.
    assert np.mean(claimed) == pytest.approx(np.std(found), rel=0.25)


def test_a_constant_answer_ranks_nothing() -> None:
    assert spearman_parts(np.zeros(5), np.arange(5)).tolist() == [0.0] * 5


def test_perfect_and_reversed_order() -> None:
    assert spearman_parts(np.arange(9), np.arange(9) ** 2).mean() == pytest.approx(1.0)
    assert spearman_parts(-np.arange(9), np.arange(9)).mean() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("answered", "true", "said"),
    [([1.0, 2.0], [1.0], "one length"), ([1.0, np.nan], [1.0, 2.0], "finite")],
)
def test_bad_input(answered: list[float], true: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        spearman_parts(np.array(answered), np.array(true))
