"""A worker that sleeps as long as a job took elsewhere; its process imports nothing heavy."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Naps:
    """How long the rungs of trials take."""

    by_study: tuple[tuple[tuple[float, ...], ...], ...]
    """Of every study, trials that are replayed in turn, each with the seconds of its rungs."""
    objectives: int = 1
    """How many numbers a rung is judged by."""

    def seconds(self, study: int, number: int, rung: int) -> float:
        """Of one rung; of one that no recorded trial reached, as long as the last that it did."""
        trials = self.by_study[study]
        rungs = trials[number % len(trials)]
        return rungs[min(rung, len(rungs) - 1)]


class SleepingWorker:
    """Takes the place of `tune.workers.remote.RemoteWorker`.

    Args:
        threads: as there; of no use here.
        share: as there; of no use here.
    """

    def __init__(self, threads: int, share: int = 1) -> None:
        self._threads, self._share = threads, share

    def sleep(self, seconds: float) -> None:
        """A job that takes so long."""
        time.sleep(seconds)

    def score_trial(
        self, shared: Naps, study: int, number: int, params: Mapping[str, Any], rung: int
    ) -> tuple[float, ...]:
        """A rung of a trial: a smooth function of its parameters, which samplers can climb."""
        time.sleep(shared.seconds(study, number, rung))
        return (score(params),) * shared.objectives

    def progress(self) -> tuple[int, int]:
        """Steps done and total of what is under way, of which there are none."""
        return 0, 0


def score(params: Mapping[str, Any]) -> float:
    """Between 0 and 1; the same wherever it is computed."""
    numbers: Sequence[float] = [float(v) for v in params.values() if isinstance(v, int | float)]
    if not numbers:
        return 0.5
    return sum(0.5 + 0.5 * math.cos(3 * math.log1p(abs(value))) for value in numbers) / len(numbers)
