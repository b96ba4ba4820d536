"""Numbers as people read them."""

import pytest

from apgd.statistics import Interval
from tune.report.formatting import (
    condition,
    counted,
    duration,
    listed,
    moment,
    number,
    percent,
    points,
)


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(
        estimate=estimate, low=low, high=high, standard_error=0.1, df=9, seeds=1, examples=10
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.013, 0.008, 0.018), "+1.3 [0.8, 1.8]"),
        ((-0.013, -0.018, -0.008), "−1.3 [−1.8, −0.8]"),
        ((0.0, 0.0, 0.0), "0.0 [0.0, 0.0]"),
        ((0.0102, 0.0002, 0.0202), "+1.02 [0.02, 2.02]"),
        ((-0.00001, -0.02, 0.02), "0.0 [−2.0, 2.0]"),
    ],
)
def test_differences(values, text):
    assert points(interval(*values)) == text


def test_shares():
    assert percent(interval(0.712, 0.706, 0.718)) == "71.2 ± 0.6"
    assert percent(None) == points(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (None, "–"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_words():
    assert number(0.0712345) == "0.07123"
    assert number(-3) == "−3"
    assert number(None) == "none"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert counted(1, "seed") == "1 seed"
    assert condition("jpeg_compression") == "JPEG compression"
    assert moment("2026-01-05T09:30:00+00:00") == "2026-01-05 09:30 UTC"
    assert moment("yesterday") == "yesterday"
