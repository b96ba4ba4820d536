"""A search whose steady part is measured: what was done in it, and where the time went.

Part of experiments/benchmark_search.py.
"""

import time
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from experiments.search_rates import Counts, time_split
from tune.search.rungs import RungResult
from tune.search.sampling import Outcome, Sampling
from tune.search.studies import Params, Study


class TimedSampling(Sampling):
    """Sampling that notes when rungs are done, and ends the search once its time is up.

    Args:
        study: as `Sampling`.
        name: as `Sampling`.
        storage: as `Sampling`.
        warm_up: the time begins when so many rungs are done, one for each worker.
        seconds: how long it is; None for as long as there are trials.
    """

    def __init__(
        self, study: Study, name: str, storage: Any, warm_up: int, seconds: float | None
    ) -> None:
        super().__init__(study, name, storage)
        self._warm_up, self._seconds = warm_up, seconds
        self.reported: list[tuple[float, int, int]] = []
        """When, which trial, which of its rungs, of the trials that have ended; in that order."""
        self._ended: list[float] = []

    @property
    def begin(self) -> float:
        """When the steady part begins."""
        return self.reported[self._warm_up - 1][0]

    @property
    def end(self) -> float:
        """The last rung that ended while no worker was short of work; `begin` where none did."""
        if self._seconds is None:
            busy = len(self._ended) - self._warm_up  # ends after which each worker has a trial left
            until = sorted(self._ended)[busy - 1] if busy > 0 else self.begin
        else:
            until = self.begin + self._seconds
        return max((at for at, _, _ in self.reported if at <= until), default=self.begin)

    @property
    def _over(self) -> bool:
        if self._seconds is None or len(self.reported) < self._warm_up:
            return False
        return time.perf_counter() > self.begin + self._seconds

    def suggest(self) -> tuple[int, Params] | None:
        """See `Sampling`."""
        if self._over:
            self.study = replace(self.study, trials=self.suggested)
        return super().suggest()

    def finish(self, number: int, outcome: Outcome, notes: Mapping[str, Any]) -> None:
        """See `Sampling`."""
        super().finish(number, outcome, notes)
        now, since = time.perf_counter(), time.time()
        for rung, at in enumerate(outcome.times):
            insort(self.reported, (now - (since - at), number, rung))
        self._ended.append(now)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A search that was measured, over its steady part."""

    label: str
    workers: int
    seconds: float
    """Length of the steady part."""
    warm_up: float
    """Seconds before it: singular vectors, processes, data, as many rungs as there are workers."""
    counts: Counts
    best: float | None
    """Largest mean accuracy on all validation examples, of the whole search; None where it had no
    time for any."""
    cpu: Mapping[str, float]
    """Processor seconds in the steady part by kind of process."""
    processes: int
    """Processes of Tune trials that were started in the steady part."""
    rungs: Sequence[Sequence[RungResult]] = field(repr=False)
    """Of every trial."""

    def per_hour(self, count: float) -> float:
        """The rate of something that was counted."""
        return 3600 * count / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Everything but the rungs, with rates and shares of time."""
        named = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "rungs"}
        split = time_split(self.seconds, self.workers, self.counts)
        rates = {
            "settings": self.counts.settings, "settings_in_full": self.counts.in_full,
            "trials": self.counts.trials, "images": self.counts.images,
        }  # fmt: skip
        return {
            **named, "counts": asdict(self.counts), "time": asdict(split),
            "per_hour": {name: self.per_hour(count) for name, count in rates.items()},
        }  # fmt: skip
