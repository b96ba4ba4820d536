"""Ctrl-C that is not lost.

An interrupt that arrives while Python is in a destructor or a callback, as Ray has many, is printed
and dropped there; so it is noted here, and raised again where work goes on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_seen = threading.Event()


@contextmanager
def noted() -> Iterator[None]:
    """Note interrupts for the length of a `with` block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not for other threads
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        _seen.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _seen.clear()


def check() -> None:
    """Raise KeyboardInterrupt where one was noted and work goes on all the same."""
    if _seen.is_set():
        raise KeyboardInterrupt
