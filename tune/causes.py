"""What an error is about, beneath what libraries wrap it in."""

import errno
import sqlite3
from collections.abc import Iterator

from apgd.errors import DiskFullError
from tune import interrupts
from tune.head import HeadLostError


def cause_of(error: BaseException) -> BaseException:
    """What a user needs to hear of: what a worker raised, or why all had to end.

    Ray makes a SystemError of what is raised in the middle of some of its calls.
    """
    cause: BaseException = getattr(error, "cause", None) or error
    for inner in _chain(cause):
        if isinstance(inner, DiskFullError | HeadLostError):
            return inner
        if isinstance(inner, KeyboardInterrupt):
            return interrupts.told(inner)
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT):
            where = inner.filename or "a file of the run"
            return DiskFullError(inner.errno, inner.strerror, str(where))
        if isinstance(inner, sqlite3.OperationalError) and "disk is full" in str(inner):
            return DiskFullError(errno.ENOSPC, str(inner), "the run's database")
    return cause


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__
