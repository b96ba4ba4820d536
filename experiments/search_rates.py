"""What a search's figures are counted from: rungs, times of events, and processor time."""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import psutil

from tune.search.rungs import RungResult, Setting

PROCESSES = {
    "trials": ("ray::MergeTrial", "ray::ResourceTrainable"),
    "workers": ("ray::RemoteWorker",),
}
"""Titles of a search's processes by kind, for `CpuMeter`."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was done, of a rung or of many."""

    trials: float = 0.0
    """Runs of the method; each rung of one counts as the same part of it."""
    settings: float = 0
    """Sets of all parameters that got their first score; each is what a naive trial gives."""
    in_full: float = 0
    """Those that got their first score on all validation examples."""
    images: float = 0
    """Images that went through the model."""
    merge: float = 0.0
    """Seconds of workers in merging."""
    score: float = 0.0
    """Seconds of workers in scoring, which is the forward pass."""

    def __mul__(self, part: float) -> "Counts":
        """A part of it."""
        return Counts(**{name: part * value for name, value in asdict(self).items()})

    def __add__(self, other: "Counts") -> "Counts":
        """Both together."""
        return Counts(
            trials=self.trials + other.trials,
            settings=self.settings + other.settings,
            in_full=self.in_full + other.in_full,
            images=self.images + other.images,
            merge=self.merge + other.merge,
            score=self.score + other.score,
        )


def rung_counts(
    rungs: Sequence[RungResult], examples_at: Callable[[float], int]
) -> tuple[Counts, ...]:
    """What each rung of one trial added.

    Args:
        rungs: the trial's, from its first.
        examples_at: share of the validation examples -> how many of all tasks that is.
    """
    met: list[Setting] = []
    at_share: list[tuple[float, Setting]] = []
    found = []
    for rung in rungs:
        settings = [judged.setting for judged in rung.judged]
        # A setting that has a score on the same examples keeps it, and is not scored again.
        scored = [s for s in settings if (rung.share, s) not in at_share]
        found.append(
            Counts(
                trials=1 / len(rungs),
                settings=sum(s not in met for s in settings),
                in_full=len(scored) if rung.share == 1 else 0,
                images=len(scored) * examples_at(rung.share),
                merge=rung.seconds["merge"],
                score=rung.seconds["score"],
            )
        )
        met += settings
        at_share += [(rung.share, s) for s in scored]
    return tuple(found)


def steady_rate(ended: Sequence[float], slots: int) -> float:
    """Trials per second while `slots` of them ran side by side, each slot always busy.

    From the mean time between the end of a trial and the end of the next one in its slot; each
    slot's first trial, which also reads files that nobody had read yet, is left out.

    Args:
        ended: when each trial ended, in seconds, in the order in which they began.
        slots: how many ran at a time.

    Raises:
        ValueError: for fewer than two trials a slot.
    """
    if len(ended) < 2 * slots:
        raise ValueError(
            f"a rate needs at least two trials a slot, but got {len(ended)} for {slots}"
        )
    count = len(ended) - slots
    began = sorted(ended)[:count]  # each end but the last ones is another trial's beginning
    return slots * count / (sum(ended[slots:]) - sum(began))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the time of workers went."""

    merge: float
    """Share in merging."""
    score: float
    """Share in the forward pass."""
    other: float
    """The rest: messages, files, waiting for a trial."""
    per_trial: float
    """Seconds of the rest for each trial."""
    per_setting: float
    """Seconds of the rest for each setting."""


def time_split(wall: float, workers: int, counts: Counts) -> Split:
    """Hold what was done against the time that workers had.

    Args:
        wall: seconds.
        workers: how many there were.
        counts: what they did in that time.

    Raises:
        ValueError: where nothing was done.
    """
    if not (wall > 0 and workers > 0 and counts.settings > 0):
        raise ValueError(
            f"time is split over at least one setting, but got {counts.settings} in {wall} s of "
            f"{workers} workers"
        )
    had = wall * workers
    other = had - counts.merge - counts.score
    return Split(
        merge=counts.merge / had,
        score=counts.score / had,
        other=other / had,
        per_trial=other / counts.trials,
        per_setting=other / counts.settings,
    )


def within(events: Iterable[tuple[float, Counts]], start: float, end: float) -> Counts:
    """What was done between two times.

    Of work that began before or ended after, the part counts that lies between: otherwise a rung
    of seconds at either end would hide milliseconds of everything else.

    Args:
        events: when work ended and what it was; it began as many seconds before as it took.
        start: in seconds.
        end: in seconds.
    """
    total = Counts()
    for at, done in events:
        took = done.merge + done.score
        inside = min(at, end) - max(at - took, start)
        if took > 0 and inside > 0:
            total += done * (inside / took)
    return total


class CpuMeter:
    """Processor time of this process and its descendants by group, sampled in a thread.

    Args:
        groups: group -> beginning of the titles of its processes; of what fits no group, Ray's own
            processes, the time goes to `ray`, and this process's to `driver`.
    """

    _SECONDS = 0.5

    def __init__(self, groups: Mapping[str, tuple[str, ...]]) -> None:
        self._groups = groups
        self._own = psutil.Process()
        self._seen: dict[int, tuple[str, float]] = {}  # by process: group and seconds so far
        self._totals = dict.fromkeys(("driver", *groups, "ray"), 0.0)
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._started: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds by group between two times of the performance counter, to half a second."""
        first, last = self._at(start), self._at(end)
        return {group: last[group] - first.get(group, 0.0) for group in last}

    def started(self, group: str, start: float, end: float) -> int:
        """Processes of a group that came up between two times."""
        return sum(of == group and start < at <= end for at, of in self._started)

    def _at(self, when: float) -> dict[str, float]:
        times = [at for at, _ in self._samples]
        return self._samples[max(0, bisect_right(times, when) - 1)][1]

    def _run(self) -> None:
        while not self._stop.wait(self._SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = time.perf_counter()
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                with process.oneshot():
                    spent = process.cpu_times()
                    title = " ".join(process.cmdline())
            except psutil.Error:  # it has just ended
                continue
            group = self._group(process.pid, title)
            before, seconds = self._seen.get(process.pid, ("", 0.0))
            if before in self._groups:
                group = before  # an actor's title changes with what it does
            elif group in self._groups:
                self._started.append((now, group))
            self._totals[group] += spent.user + spent.system - seconds
            self._seen[process.pid] = (group, spent.user + spent.system)
        self._samples.append((now, dict(self._totals)))

    def _group(self, pid: int, title: str) -> str:
        if pid == self._own.pid:
            return "driver"
        found = (g for g, starts in self._groups.items() if title.startswith(starts))
        return next(found, "ray")
