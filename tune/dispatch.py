"""Calls handed to actors as they become free."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import ray
from ray.actor import ActorHandle

from tune import interrupts

_POLL_SECONDS = 0.5

Running: TypeAlias = dict["ray.ObjectRef[Any]", tuple[int, ActorHandle[Any]]]
"""Calls under way: the call's number, and who works on it."""


def dispatch(
    workers: Sequence[ActorHandle[Any]],
    call: Callable[[ActorHandle[Any], int], "ray.ObjectRef[Any]"],
    count: int,
    *,
    attempts: int = 1,
    on_wait: Callable[[Running], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Make `count` calls, each on the first actor that is free; number and result as they end.

    Args:
        workers: actors, which do one thing at a time.
        call: starts the call of a number on an actor.
        count: calls are numbered from 0, and begun in that order.
        attempts: how often a call is made, where the actor dies over it; others take it over.
        on_wait: called about twice a second.

    Raises:
        Exception: what the first failing call raised, as Ray wraps it.
    """
    waiting, idle = deque(range(count)), deque(workers)
    lost = dict.fromkeys(range(count), 0)
    running: Running = {}
    restarting: dict[ray.ObjectRef[Any], ActorHandle[Any]] = {}
    while waiting or running:
        interrupts.check()
        while waiting and idle:
            number, worker = waiting.popleft(), idle.popleft()
            running[call(worker, number)] = (number, worker)
        done, _ = ray.wait([*running, *restarting], timeout=_POLL_SECONDS)
        for reference in done:
            if reference in restarting:
                worker = restarting.pop(reference)
                if _is_well(reference):
                    idle.append(worker)
                elif not (running or restarting or idle):
                    raise RuntimeError("every worker has died, each more often than is usual")
                continue
            number, worker = running.pop(reference)
            try:
                result = ray.get(reference)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                lost[number] += 1
                if lost[number] >= attempts:
                    raise
                waiting.appendleft(number)
                restarting[_when_restarted(worker)] = worker
                continue
            idle.appendleft(worker)
            yield number, result
        if on_wait is not None:
            on_wait(running)


def _when_restarted(worker: Any) -> "ray.ObjectRef[Any]":
    reference: ray.ObjectRef[Any] = worker.__ray_ready__.options(max_task_retries=-1).remote()
    return reference


def _is_well(reference: "ray.ObjectRef[Any]") -> bool:
    """Whether an actor came back."""
    try:
        ray.get(reference)
    except ray.exceptions.RayActorError:
        return False
    return True
