"""Workers as a process of Tune sees them: rungs go to those that live, whoever dies or is slow.

Ray does not repeat calls of workers (they have no `max_task_retries`), so each loss is seen here.
Scores are functions of what is asked, and rungs are on disk as they are done, so that it does not
matter who judges one, or how many do.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from tune.workers.losses import raised_in, why_not_started

ENDING = ("LeakError", "InputError", "DamagedError", "DiskFullError", "MemoryFullError")
"""Errors that every other trial would meet too, so that the search ends with them."""
_ATTEMPTS = 6  # of a rung
_PAUSE_SECONDS = 1.0  # before a rung whose files could not be read is tried again, then doubled
_PROBE_SECONDS = 1.0
_SETTLE_SECONDS = 0.3  # between the failures of calls that one worker had
_UNLIKE, _UNKNOWN = 10, 30

Place = tuple[int, int]
"""A trial: index of its study, and its number."""


@dataclass(frozen=True)
class Stuck:
    """When a rung counts as stuck, so that another worker gets it too.

    It is when it takes `times` as long as the longest of its study's so far, and `least` seconds.
    Where there was none of its study yet, ten times of both with the longest of any study, and
    where there was none at all, thirty times `least`: the first ones load experts and data.
    """

    least: float = 60.0
    """Seconds."""
    times: float = 5.0


@dataclass(frozen=True)
class Order:
    """A trial that is to be judged."""

    study: int
    number: int
    params: dict[str, Any]
    bars: tuple[float, ...]
    """What its first objective must reach after each rung but the last."""
    worker: int
    """Index of who is to judge it."""

    @property
    def place(self) -> Place:
        """Which trial it is."""
        return self.study, self.number

    def goes_on(self, values: Sequence[tuple[float, ...]]) -> bool:
        """Whether it goes on after these rungs' objectives."""
        return len(values) <= len(self.bars) and values[-1][0] >= self.bars[len(values) - 1]


@dataclass(frozen=True)
class Ended:
    """What became of a trial."""

    place: Place
    values: tuple[tuple[float, ...], ...]
    """Objectives by rung."""
    times: tuple[float, ...]
    """Unix time at which each rung was done."""
    error: str | None = None
    ends_search: bool = False
    """Whether every other trial would meet the error too."""
    kind: str = ""
    """The name of the error's class, where it ends the search."""


@dataclass(frozen=True)
class Loss:
    """A worker that died, is slow, or could not read or write over some trials."""

    worker: int
    places: tuple[Place, ...]
    taken_by: tuple[int, ...]
    """Who judges them now; none, where they wait until a worker is back."""
    seconds: float | None = None
    """For how long a slow worker has had the first of them; None for one that is not slow."""
    error: str | None = None
    """What it could not read or write; None where that is not why."""


@dataclass(frozen=True)
class News:
    """What a process reports."""

    ended: Sequence[Ended] = ()
    losses: Sequence[Loss] = ()
    holding: Mapping[Place, int] = field(default_factory=dict)
    """The trials under way, each with its worker."""
    down: Sequence[int] = ()
    """Workers that are dead or stuck at present."""
    met: Mapping[int, str] = field(default_factory=dict)
    """Workers that have come, or come back, each with its machine, where it told."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Workers that have come and must not judge, each with its machine."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Workers that cannot start, each with its error."""


@dataclass
class _Judging:
    """A trial under way."""

    order: Order
    worker: int
    values: list[tuple[float, ...]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    losses: int = 0
    not_before: float = 0.0
    """When its present rung may be tried again, by the monotonic clock."""


@dataclass(frozen=True)
class _Call:
    judging: _Judging
    rung: int
    worker: int
    since: float


class Judges:
    """Hands trials to workers and collects what comes of them.

    Args:
        workers: the actors that score.
        shared: what they get with every call.
        stuck: see there.
        identity: what their `identify` must answer before they judge, as code of another version
            must not; whoever answers at all may, where None.
    """

    def __init__(
        self,
        workers: Sequence[ActorHandle[Any]],
        shared: Any,
        stuck: Stuck,
        identity: str | None = None,
    ) -> None:
        self._workers, self._shared, self._limits = workers, shared, stuck
        self._identity = identity
        self._judging: dict[Place, _Judging] = {}
        self._calls: dict[ray.ObjectRef[Any], _Call] = {}
        self._waiting: list[_Judging] = []  # for a worker that lives, or for their time
        # Whom to ask when whether it is there; all of them at the beginning.
        self._dead = dict.fromkeys(range(len(workers)), 0.0)
        self._probes: dict[ray.ObjectRef[Any], int] = {}
        self._stuck: dict[ray.ObjectRef[Any], int] = {}
        self._longest: dict[tuple[int, int], float] = {}
        self._ended: list[Ended] = []
        self._losses: list[Loss] = []
        self._met: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._failed: dict[int, str] = {}

    @property
    def idle(self) -> bool:
        """Whether there is no trial to judge."""
        return not self._judging

    @property
    def down(self) -> list[int]:
        """Workers that are dead or stuck at present."""
        return sorted({*self._dead, *self._stuck.values()})

    def take(self, orders: Sequence[Order]) -> None:
        """Begin with trials."""
        for order in orders:
            judging = _Judging(order, order.worker)
            self._judging[order.place] = judging
            self._ask(judging)

    def news(self) -> News:
        """What has happened since this was asked before, and how things are."""
        holding = {place: judging.worker for place, judging in self._judging.items()}
        news = News(
            self._ended, self._losses, holding, self.down, self._met, self._refused, self._failed
        )
        self._ended, self._losses = [], []
        self._met, self._refused, self._failed = {}, {}, {}
        return news

    def wait(self, seconds: float, least: float = 0.0) -> None:
        """Wait until a trial ends, or for so long.

        Args:
            seconds: so long where none ends.
            least: so long in any case, so that several that end are one report.
        """
        begun = time.monotonic()
        while True:
            enough = least if self._ended or self._met else seconds
            left = begun + enough - time.monotonic()
            if left <= 0:
                return
            self._probe()
            self._relieve()
            asked = [*self._calls, *self._probes]
            if not asked:
                time.sleep(min(left, _PROBE_SECONDS))
                continue
            done, _ = ray.wait(asked, timeout=min(left, _PROBE_SECONDS))
            self._collect(asked if done else [])

    def _collect(self, asked: Sequence["ray.ObjectRef[Any]"]) -> None:
        """Take every answer that is there."""
        lost: dict[int, list[_Judging]] = {}
        while asked:
            done, asked = ray.wait(
                list(asked), num_returns=len(asked), timeout=_SETTLE_SECONDS if lost else 0
            )
            for reference in done:
                self._answer(reference, lost)
            # A worker that died fails all of its calls, if not in the same instant.
            asked = [r for r in asked if r in self._calls and self._calls[r].worker in lost]
            if not done:
                break
        for worker, over in lost.items():
            self._give_away(worker, over)

    def _answer(self, reference: "ray.ObjectRef[Any]", lost: dict[int, list[_Judging]]) -> None:
        if reference in self._probes:
            self._answer_probe(reference)
            return
        call = self._calls.pop(reference)
        self._stuck.pop(reference, None)
        judging = call.judging
        # Somebody else was faster where it has gone on.
        late = self._judging.get(judging.order.place) is not judging
        late = late or call.rung != len(judging.values)
        try:
            values = tuple(map(float, ray.get(reference)))
        except ray.exceptions.RayTaskError as error:
            if not late:
                self._fail(judging, error, call.worker)
        except ray.exceptions.RayError as error:
            self._dead.setdefault(call.worker, 0.0)
            over = lost.setdefault(call.worker, [])
            if not late and not self._hopeful(judging):
                judging.losses += 1
                if judging.losses < _ATTEMPTS:
                    over.append(judging)
                else:
                    self._end(judging, f"{judging.losses} workers died over it: {_line(error)}")
        else:
            if not late:
                self._go_on(judging, values, call)

    def _go_on(self, judging: _Judging, values: tuple[float, ...], call: _Call) -> None:
        like = (judging.order.study, call.rung)
        took = time.monotonic() - call.since
        self._longest[like] = max(took, self._longest.get(like, 0.0))
        judging.values.append(values)
        judging.times.append(time.time())
        judging.worker = call.worker
        judging.losses = 0
        if judging.order.goes_on(judging.values):
            self._ask(judging)
        else:
            self._end(judging)

    def _fail(self, judging: _Judging, error: ray.exceptions.RayTaskError, worker: int) -> None:
        kind, told = type(error.cause).__name__, raised_in(error)
        if isinstance(error.cause, OSError) and kind not in ENDING:
            self._try_again(judging, told, worker)
        else:
            self._end(judging, told, ends_search=kind in ENDING, kind=kind)

    def _try_again(self, judging: _Judging, error: str, worker: int) -> None:
        """Have a rung judged elsewhere, and later: storage fails for a while, or for good."""
        if self._hopeful(judging):
            return  # somebody else judges it already
        judging.losses += 1
        if judging.losses >= _ATTEMPTS:
            told = f"{error} ({judging.losses} attempts failed, the last with this)"
            self._end(judging, told, ends_search=True)
            return
        other = self._freest(worker, itself=False)
        judging.worker = worker if other is None else other
        judging.not_before = time.monotonic() + _PAUSE_SECONDS * 2 ** (judging.losses - 1)
        self._ask(judging)
        self._losses.append(Loss(worker, (judging.order.place,), (), error=error))

    def _end(
        self,
        judging: _Judging,
        error: str | None = None,
        *,
        ends_search: bool = False,
        kind: str = "",
    ) -> None:
        place = judging.order.place
        del self._judging[place]
        values, times = tuple(judging.values), tuple(judging.times)
        self._ended.append(Ended(place, values, times, error, ends_search, kind))

    def _ask(self, judging: _Judging) -> None:
        """Have the next rung judged, by the same worker as the last, where it lives."""
        if time.monotonic() < judging.not_before:
            self._waiting.append(judging)
            return
        if judging.worker in self.down:
            freest = self._freest(judging.worker)
            if freest is None:
                self._waiting.append(judging)
                return
            judging.worker = freest
        self._call(judging, judging.worker)

    def _call(self, judging: _Judging, worker: int) -> None:
        order, rung = judging.order, len(judging.values)
        actor: Any = self._workers[worker]
        reference = actor.score_trial.remote(
            self._shared, order.study, order.number, order.params, rung
        )
        self._calls[reference] = _Call(judging, rung, worker, time.monotonic())

    def _hopeful(self, judging: _Judging) -> bool:
        """Whether somebody judges its present rung who is not stuck over it."""
        return any(
            call.judging is judging and call.rung == len(judging.values)
            for reference, call in self._calls.items()
            if reference not in self._stuck
        )

    def _freest(self, after: int, *, itself: bool = True) -> int | None:
        """The living worker with the fewest calls; of equals the next one in the ring.

        Args:
            after: where the ring begins.
            itself: whether it may be that one.
        """
        under_way = [call.worker for call in self._calls.values()]
        count, down = len(self._workers), set(self.down)
        ring = [(after + step) % count for step in range(1, count + itself)]
        return min((w for w in ring if w not in down), key=under_way.count, default=None)

    def _give_away(self, worker: int, over: Sequence[_Judging]) -> None:
        """Let others judge what a worker died over."""
        for judging in over:
            self._ask(judging)
        taken_by = dict.fromkeys(j.worker for j in over if j not in self._waiting)
        places = tuple(judging.order.place for judging in over)
        self._losses.append(Loss(worker, places, tuple(taken_by)))

    def _relieve(self) -> None:
        """Give rungs that take far longer than others to another worker too."""
        now = time.monotonic()
        for reference, call in list(self._calls.items()):
            judging, took = call.judging, now - call.since
            current = self._judging.get(judging.order.place) is judging
            if not current or call.rung != len(judging.values):
                continue
            if reference in self._stuck or took < self._limit(judging.order.study, call.rung):
                continue
            other = self._freest(call.worker)
            if other is None or other == call.worker:
                continue
            self._stuck[reference] = call.worker
            self._call(judging, other)
            judging.worker = other
            self._losses.append(Loss(call.worker, (judging.order.place,), (other,), took))

    def _limit(self, study: int, rung: int) -> float:
        least, times = self._limits.least, self._limits.times
        if (study, rung) in self._longest:
            return max(least, times * self._longest[study, rung])
        if self._longest:
            return _UNLIKE * max(least, times * max(self._longest.values()))
        return _UNKNOWN * least

    def _probe(self) -> None:
        """Ask the dead whether they are back, and begin with what waits and can begin."""
        now = time.monotonic()
        probed = set(self._probes.values())
        for worker, when in self._dead.items():
            if worker not in probed and now >= when:
                actor: Any = self._workers[worker]
                asked = actor.__ray_ready__ if self._identity is None else actor.identify
                self._probes[asked.remote()] = worker
        waiting, self._waiting = self._waiting, []
        for judging in waiting:
            self._ask(judging)

    def _answer_probe(self, reference: "ray.ObjectRef[Any]") -> None:
        worker = self._probes.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            reason = (
                raised_in(error)
                if isinstance(error, ray.exceptions.RayTaskError)
                else why_not_started(error)
            )
            if reason is not None:
                self._failed[worker] = reason
            self._dead[worker] = time.monotonic() + _PROBE_SECONDS if reason is None else math.inf
            return
        if self._identity is not None and answer[1] != self._identity:
            self._dead[worker] = math.inf
            self._refused[worker] = answer[0]
            return
        del self._dead[worker]
        self._met[worker] = "" if self._identity is None else answer[0]


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
