"""The head of a Ray cluster is watched, because nothing goes on without it.

Ray itself ends the process after a minute, wherever it is, with a page of its own.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tune import interrupts

_INTERVAL_SECONDS = 2.0
_LOST_SECONDS = 15.0
"""The head is given up when nobody has answered for so long."""
_LEAVE_SECONDS = 25.0
"""Then the process may take so long to end by itself."""


class HeadLostError(RuntimeError):
    """Raised where the head of the cluster, or Ray on this machine, is gone."""


@contextmanager
def watched(
    address: str, is_alive: Callable[[], bool], joined: bool, say: Callable[[str], None]
) -> Iterator[None]:
    """End the work, with an error in the main thread, where the head does not answer any more.

    Args:
        address: host and port of Ray's control service.
        is_alive: whether the cluster still has this machine; asked where that service answers.
        joined: whether the cluster was there before.
        say: called where the process has to be ended at once, because Ray does not let go of it.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(address, is_alive, joined, over, say), name="head watch", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()


def _watch(
    address: str,
    is_alive: Callable[[], bool],
    joined: bool,
    over: threading.Event,
    say: Callable[[str], None],
) -> None:
    host, _, port = address.rpartition(":")
    answered = alive = time.monotonic()
    while not over.wait(_INTERVAL_SECONDS):
        now = time.monotonic()
        with suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            answered = now
        # Where nobody answers, Ray would wait for an answer, too.
        with suppress(Exception):
            if answered < now or is_alive():
                alive = now
        if now - min(answered, alive) > _LOST_SECONDS:
            break
    else:
        return
    if not joined:
        lost = "Ray on this machine is gone; the same command starts it again and goes on from here"
    else:
        gone = "this machine's part" if answered > alive else "the head"
        lost = (
            f"{gone} of the Ray cluster ({address}) is gone; start it again, and the same command "
            f"goes on from here"
        )
    error = HeadLostError(lost)
    if interrupts.end(error) and not over.wait(_LEAVE_SECONDS):
        say(f"error: {error}")
        os._exit(1)
