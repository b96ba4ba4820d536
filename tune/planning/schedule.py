"""Indivisible jobs on equal workers: who does what when, and the least that it can take.

Jobs are handed out as `tune.workers.dispatch` does it: each worker that becomes free takes the next
one. With the longest jobs first that is at most 4/3 - 1/(3 m) times as long as the best there is on
m workers (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from apgd.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Jobs on workers."""

    workers: tuple[int, ...]
    """The worker of every job."""
    starts: tuple[float, ...]
    """When every job begins, in seconds."""
    makespan: float
    """When the last one ends."""


def longest_first(durations: Sequence[float]) -> list[int]:
    """The jobs' numbers, the longest first; of equals, the earlier one."""
    return sorted(range(len(durations)), key=lambda job: -durations[job])


def in_turn(durations: Sequence[float], workers: int) -> Schedule:
    """Jobs handed out in the order given, each to the worker that is free first.

    Args:
        durations: seconds of every job.
        workers: how many there are.

    Raises:
        InputError: for fewer than one worker, or a duration below 0.
    """
    _check(durations, workers)
    free = [(0.0, worker) for worker in range(workers)]
    chosen, starts = [], []
    for seconds in durations:
        at, worker = heapq.heappop(free)
        chosen.append(worker)
        starts.append(at)
        heapq.heappush(free, (at + seconds, worker))
    return Schedule(tuple(chosen), tuple(starts), max(at for at, _worker in free))


def list_schedule(durations: Sequence[float], workers: int) -> Schedule:
    """As `in_turn` with the longest jobs first; the schedule is in the order given.

    Raises:
        InputError: as `in_turn`.
    """
    order = longest_first(durations)
    found = in_turn([durations[job] for job in order], workers)
    place = {job: number for number, job in enumerate(order)}
    return Schedule(
        tuple(found.workers[place[job]] for job in range(len(durations))),
        tuple(found.starts[place[job]] for job in range(len(durations))),
        found.makespan,
    )


def divisible_bound(durations: Sequence[float], workers: int) -> float:
    """What it would take if jobs could be cut at will: their sum over the workers."""
    _check(durations, workers)
    return sum(durations) / workers


def lower_bound(durations: Sequence[float], workers: int) -> float:
    """What indivisible jobs take at least: no schedule is shorter.

    That is the largest of the longest job, the sum over the workers, and for every q what the
    pigeonhole principle says: of the q m + 1 longest jobs, one worker has q + 1, which are at
    least as long as the q + 1 shortest of them.

    Raises:
        InputError: as `in_turn`.
    """
    _check(durations, workers)
    ranked = sorted(durations, reverse=True)
    bounds = [sum(ranked) / workers, *ranked[:1]]
    for q in range(1, (len(ranked) - 1) // workers + 1):
        longest = ranked[: q * workers + 1]
        bounds.append(sum(longest[-(q + 1) :]))
    return max(bounds)


def _check(durations: Sequence[float], workers: int) -> None:
    if workers < 1:
        raise InputError(f"jobs need at least one worker, but got {workers}")
    if any(not seconds >= 0 for seconds in durations):
        raise InputError(f"durations must not be negative, but got {min(durations)}")
