"""Calls handed to actors as they become free, whatever happens to the actors.

An actor that dies is restarted by Ray, on another machine where its own is gone; meanwhile its call
is made again by another one. Calls are pure or go on from what they left on disk, so that making
one again changes nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.actor import ActorHandle

from apgd.errors import InputError
from tune import interrupts
from tune.workers.losses import raised_in, why_not_started

_POLL_SECONDS = 0.5
_SLOWER = 5.0
"""A call that takes so many times longer than the longest that has ended is made twice."""

Actor: TypeAlias = "ActorHandle[Any]"
Reference: TypeAlias = "ray.ObjectRef[Any]"
Say: TypeAlias = Callable[[str], None]

LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
"""What a call raises whose actor died, or whose result went with its machine."""


@dataclass(frozen=True)
class Call:
    """One call under way."""

    number: int
    """Which of the calls it is; of one that is made twice, both have the same."""
    worker: int
    """Who works on it, counted from 0."""
    began: float
    """When, by the monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long is waited before something is done about it, in seconds."""

    twice: float | None = 60.0
    """A call is also given to an idle actor when it has taken so long, and five times the longest
    that has ended; or ten times so long where none has. Never, where None."""
    alone: float = 900.0
    """The work ends with an error when every actor has been away for so long."""


def _nobody(_text: str) -> None:
    """What is said where nobody listens."""


def _ready(worker: Any) -> Reference:
    reference: Reference = worker.__ray_ready__.options(max_task_retries=-1).remote()
    return reference


class Crew:
    """Actors that do one thing at a time, and which of them are free.

    Args:
        workers: the actors, whose `max_restarts` is not 0 and whose `max_task_retries` is.
        arrive: begins a call, retried without end, that an actor answers once it is there, or
            there again.
        admit: called in this process with an actor's number and that answer; it raises where the
            actor may not work.
        begin_away: whether actors need not be there yet.
        say: called with one sentence for whatever happens to an actor.
    """

    def __init__(
        self,
        workers: Sequence[Actor],
        *,
        arrive: Callable[[Actor], Reference] | None = None,
        admit: Callable[[int, Any], None] = lambda _number, _answer: None,
        begin_away: bool = False,
        say: Say = _nobody,
    ) -> None:
        self.workers = list(workers)
        self._arrive = arrive or _ready
        self._admit = admit
        self._say = say
        self._free = deque[int]()
        self._away: dict[Reference, int] = {}
        self._late: dict[Reference, int] = {}  # whose answers nobody waits for any more
        self.left = set[int]()
        """Numbers of those that were left out for good."""
        self._names = [f"worker {number}" for number in range(len(self.workers))]
        for number in range(len(self.workers)):
            if begin_away:
                self._expect(number)
            else:
                self._free.append(number)

    def name(self, number: int, place: str) -> None:
        """Call an actor by its machine, too."""
        self._names[number] = f"worker {number} on {place}"

    def meet_again(self) -> None:
        """Have all who are free say again who they are, as after work that went past this crew."""
        while self._free:
            self._expect(self._free.popleft())

    def gather(self, seconds: float, late_seconds: float | None = None) -> int:
        """Wait until all actors are there, or for so long; how many are.

        Args:
            seconds: how long for the first.
            late_seconds: how long for the others once one is there; all of `seconds`, where None.
                On a machine that has just been switched off, an actor does not come at all.

        Raises:
            InputError: where one fails as it is made.
            Exception: what `admit` raises.
        """
        until = time.monotonic() + seconds
        while self._away and (left := until - time.monotonic()) > 0:
            if late_seconds is not None and self._free:
                until, late_seconds = min(until, time.monotonic() + late_seconds), None
            interrupts.check()
            done, _ = ray.wait(list(self._away), timeout=min(left, _POLL_SECONDS))
            for reference in done:
                self._return(reference, self._admit)
        return len(self.workers) - len(self._away)

    def dispatch(
        self,
        call: Callable[[Actor, int], Reference],
        count: int,
        *,
        what: Callable[[int], str] = lambda number: f"doing call {number}",
        attempts: int = 1,
        patience: Patience | None = None,
        on_wait: Callable[["Running"], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Make `count` calls, each on the first actor that is free; number and result as they end.

        Args:
            call: starts the call of a number on an actor.
            count: calls are numbered from 0, and begun in that order.
            what: what a call does, for people; it follows on "while".
            attempts: how often a call is made, where actors die over it or are given up.
            patience: how long is waited; as `Patience` has it, where None.
            on_wait: called about twice a second.

        Raises:
            RuntimeError: where every actor is away for too long.
            Exception: what the first failing call raised, as Ray wraps it.
        """
        running = Running(self, call, count, what, attempts, patience or Patience())
        try:
            while not running.finished:
                interrupts.check()
                yield from running.turn()
                if on_wait is not None:
                    on_wait(running)
        finally:
            # Whoever still works on what another has answered is free when it is done.
            self._late |= {reference: one.worker for reference, one in running.calls.items()}

    def _expect(self, number: int) -> None:
        self._away[self._arrive(self.workers[number])] = number

    def _return(self, reference: Reference, admit: Callable[[int, Any], None]) -> None:
        number = self._away.pop(reference)
        try:
            answer = ray.get(reference)
        except LOST as error:
            reason = why_not_started(error)
            if reason is not None:
                raise InputError(f"worker {number} cannot start: {reason}") from None
            # It died once more while it was starting.
            self._expect(number)
            return
        admit(number, answer)
        self._free.append(number)

    def _return_or_leave(self, reference: Reference) -> None:
        """Take an actor back; one that may not work here is left out for good."""
        number = self._away[reference]
        try:
            self._return(reference, self._admit)
        except InputError as error:
            self._leave(number, str(error))
        except ray.exceptions.RayTaskError as error:
            self._leave(number, raised_in(error))

    def _leave(self, number: int, reason: str) -> None:
        self._say(f"{self._names[number]} is left out: {reason}")
        self.left.add(number)
        ray.kill(self.workers[number])


class Running:
    """The calls of one dispatch that are under way."""

    def __init__(
        self,
        crew: Crew,
        call: Callable[[Actor, int], Reference],
        count: int,
        what: Callable[[int], str],
        attempts: int,
        patience: Patience,
    ) -> None:
        self._crew, self._call, self._what = crew, call, what
        self._attempts, self._patience = attempts, patience
        self._waiting = deque(range(count))
        self._open = set(range(count))
        self._lost = dict.fromkeys(range(count), 0)
        self._longest: float | None = None
        self._seen_somebody = time.monotonic()
        self.calls: dict[Reference, Call] = {}
        """Those under way."""

    @property
    def finished(self) -> bool:
        """Whether every call has its result."""
        return not self._open

    def name_of(self, call: Call) -> str:
        """What the worker of a call is called."""
        return self._crew._names[call.worker]

    def worker_of(self, call: Call) -> Actor:
        """Who works on a call."""
        return self._crew.workers[call.worker]

    def turn(self) -> Iterator[tuple[int, Any]]:
        """Begin what can begin, wait a little, and see to what has ended."""
        crew = self._crew
        while self._waiting and crew._free:
            self._begin(self._waiting.popleft())
        self._begin_twice()
        if self.calls or crew._free or crew._late:
            self._seen_somebody = time.monotonic()
        elif time.monotonic() - self._seen_somebody > self._patience.alone:
            raise RuntimeError(
                f"every worker is gone, and none came back within {self._patience.alone:.0f} s; "
                f"the same command goes on when machines are there again"
            )
        references = [*self.calls, *crew._away, *crew._late]
        if not references:
            raise RuntimeError("no worker is left that may work in this run")
        for reference in ray.wait(references, timeout=_POLL_SECONDS)[0]:
            if reference in crew._away:
                crew._return_or_leave(reference)
            elif reference in crew._late:
                self._free_late(reference)
            else:
                yield from self._settle(reference)

    def _begin(self, number: int) -> None:
        worker = self._crew._free.popleft()
        reference = self._call(self._crew.workers[worker], number)
        self.calls[reference] = Call(number, worker, time.monotonic())

    def _begin_twice(self) -> None:
        """Give calls that take suspiciously long to idle actors as well."""
        if self._patience.twice is None:
            return
        limit = (
            10 * self._patience.twice
            if self._longest is None
            else max(self._patience.twice, _SLOWER * self._longest)
        )
        now, working = time.monotonic(), [one.number for one in self.calls.values()]
        for one in sorted(self.calls.values(), key=lambda one: one.began):
            if not self._crew._free or now - one.began < limit:
                return
            if working.count(one.number) == 1 and one.number in self._open:
                names = self._crew._names
                self._crew._say(
                    f"{names[one.worker]} has been {self._what(one.number)} for "
                    f"{now - one.began:.0f} s, far longer than others take; "
                    f"{names[self._crew._free[0]]} does it as well"
                )
                self._begin(one.number)
                working.append(one.number)

    def _free_late(self, reference: Reference) -> None:
        worker = self._crew._late.pop(reference)
        try:
            ray.get(reference)
        except LOST:
            self._crew._expect(worker)
        except ray.exceptions.RayTaskError:  # of a call that another one has answered
            self._crew._free.append(worker)
        else:
            self._crew._free.append(worker)

    def _settle(self, reference: Reference) -> Iterator[tuple[int, Any]]:
        one = self.calls[reference]
        try:
            result = ray.get(reference)
        except LOST as error:
            self.lose(reference, error=error)
            return
        except ray.exceptions.RayTaskError:
            if one.number in self._open:
                raise
            result = None  # another one has answered already
        del self.calls[reference]
        self._crew._free.appendleft(one.worker)
        took = time.monotonic() - one.began
        self._longest = max(took, self._longest or 0.0)
        if one.number in self._open:  # otherwise another one was faster
            self._open.discard(one.number)
            yield one.number, result

    def lose(self, reference: Reference, *, error: Exception | None = None) -> None:
        """Have a call made again whose actor died, or is given up.

        Raises:
            Exception: the error, where too many actors died over the call.
            RuntimeError: where the call was given up, and made too often.
        """
        one, crew = self.calls.pop(reference), self._crew
        crew._expect(one.worker)
        if one.number not in self._open:
            return
        self._lost[one.number] += 1
        told = f"{crew._names[one.worker]} died while {self._what(one.number)}"
        if error is not None and self._lost[one.number] >= self._attempts:
            crew._say(f"{told}; no worker has survived it in {self._attempts} attempts")
            raise error
        if self._lost[one.number] >= self._attempts:
            raise RuntimeError(
                f"no worker made a step for too long while {self._what(one.number)}, in "
                f"{self._attempts} attempts; see whether its data and checkpoints can be read on "
                f"all machines, and run the same command again"
            )
        if error is not None:
            crew._say(f"{told}; it is begun again")
        if all(other.number != one.number for other in self.calls.values()):
            self._waiting.appendleft(one.number)
