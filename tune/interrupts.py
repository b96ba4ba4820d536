"""Signals to end that are not lost: Ctrl-C, SIGTERM, a terminal that is gone.

One that arrives while Python is in a destructor or a callback, as Ray has many, is printed and
dropped there; so it is noted here, and raised again where work goes on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_seen: list[signal.Signals] = []
_faults: list[Exception] = []
_noting = False


class Stopped(KeyboardInterrupt):
    """Raised where the process was told to end; what follows is as after Ctrl-C.

    Args:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__("Ctrl-C" if number == signal.SIGINT else number.name)
        self.status = 128 + number
        """The exit status that shells expect of a process that ended by the signal."""


def _handle(number: int, _frame: FrameType | None) -> None:
    if _faults:
        raise _faults[0]
    _seen.append(signal.Signals(number))
    raise Stopped(_seen[0])


def told(error: KeyboardInterrupt) -> BaseException:
    """What an interruption means: Ray raises a plain one for any signal in some of its calls."""
    if _faults:
        return _faults[0]
    return Stopped(_seen[0]) if _seen and not isinstance(error, Stopped) else error


def end(error: Exception) -> bool:
    """Have the main thread raise an error that another thread found, wherever it is.

    Returns:
        Whether it will: only inside `noted`.
    """
    main = threading.main_thread().ident
    if not _noting or main is None:
        return False
    _faults.append(error)
    signal.pthread_kill(main, signal.SIGTERM)
    return True


@contextmanager
def noted() -> Iterator[None]:
    """Note signals to end for the length of a `with` block; those that are ignored stay so."""
    global _noting
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not for other threads
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _noting = True
    note_again()
    try:
        yield
    except KeyboardInterrupt as error:
        meant = told(error)
        if meant is not error:
            raise meant from error
        raise
    finally:
        _noting = False
        for number, handler in before.items():
            signal.signal(number, handler)
        _seen.clear()
        _faults.clear()


def note_again() -> None:
    """Take the signals back from a library that took them meanwhile, as Ray does at its start."""
    if _noting and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # `nohup` has a process ignore that its terminal is gone.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)


def check() -> None:
    """Raise what was noted, where work goes on all the same."""
    if _faults:
        raise _faults[0]
    if _seen:
        raise Stopped(_seen[0])
