"""Schedules of indivisible jobs beside closed forms, bounds, and the best there is."""

from itertools import pairwise, product

import numpy as np
import pytest

from apgd import InputError
from tune.planning.schedule import (
    divisible_bound,
    in_turn,
    list_schedule,
    longest_first,
    lower_bound,
)


def best(durations: list[float], workers: int) -> float:
    """The shortest makespan, by trying every assignment."""
    choices = product(range(workers), repeat=len(durations))
    return min(
        max(
            sum(d for d, at in zip(durations, chosen, strict=True) if at == w)
            for w in range(workers)
        )
        for chosen in choices
    )


def test_equal_jobs_take_rounds() -> None:
    for jobs, workers in ((1, 3), (3, 3), (7, 3), (8, 8), (20, 8)):
        rounds = -(-jobs // workers)
        found = list_schedule([2.0] * jobs, workers)
        assert found.makespan == 2.0 * rounds
        assert lower_bound([2.0] * jobs, workers) == 2.0 * rounds  # the pigeonhole principle
        assert divisible_bound([2.0] * jobs, workers) == pytest.approx(2.0 * jobs / workers)


def test_grahams_worst_case_of_longest_first() -> None:
    # Two workers, 3 3 2 2 2: longest first takes 7 where 6 would do, which is 4/3 - 1/6.
    found = list_schedule([2, 3, 2, 3, 2], 2)
    assert found.makespan == 7
    assert best([2, 3, 2, 3, 2], 2) == lower_bound([2, 3, 2, 3, 2], 2) == 6
    assert found.makespan / 6 == pytest.approx(4 / 3 - 1 / (3 * 2))


def test_jobs_in_turn_go_to_who_is_free_first() -> None:
    found = in_turn([4, 1, 1, 5], 2)
    assert found.workers == (0, 1, 1, 1)
    assert found.starts == (0, 0, 1, 2)
    assert found.makespan == 7
    assert list_schedule([4, 1, 1, 5], 2).makespan == 6


def test_the_longest_job_first_of_equals_the_earlier() -> None:
    assert longest_first([1, 3, 2, 3]) == [1, 3, 2, 0]


def test_nothing_takes_no_time() -> None:
    assert list_schedule([], 4).makespan == lower_bound([], 4) == divisible_bound([], 4) == 0


@pytest.mark.parametrize("seed", range(30))
def test_bounds_enclose_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    workers = int(rng.integers(1, 4))
    durations = [float(d) for d in rng.integers(1, 12, int(rng.integers(1, 8)))]
    shortest, found = best(durations, workers), list_schedule(durations, workers)
    assert lower_bound(durations, workers) <= shortest <= found.makespan
    assert found.makespan <= (4 / 3 - 1 / (3 * workers)) * shortest + 1e-9
    assert in_turn(durations, workers).makespan <= (2 - 1 / workers) * shortest + 1e-9
    # A schedule is one: no worker does two things at once, and every job has its time.
    for worker in range(workers):
        spans = sorted(
            (start, start + seconds)
            for start, seconds, at in zip(found.starts, durations, found.workers, strict=True)
            if at == worker
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    ends = [s + d for s, d in zip(found.starts, durations, strict=True)]
    assert max(ends) == found.makespan


@pytest.mark.parametrize(
    ("durations", "workers", "told"),
    [([1.0], 0, "at least one worker, but got 0"), ([1.0, -2.0], 1, "negative, but got -2.0")],
)
def test_what_is_no_job_is_refused(durations: list[float], workers: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        lower_bound(durations, workers)
