"""Lanes: functions run side by side, each computing on one thread.

torch's own threads split sums in ways that depend on their number, so the same product has other
last bits on another machine. Here the work is cut into pieces that do not depend on the number of
threads, each piece is computed on one thread, and only who computes it varies.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar

import scipy.linalg  # noqa: F401 - loads the BLAS whose threads are to be found
import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


class Each(Protocol):
    """Calls a function with every item, several at a time, and returns when all are done."""

    def __call__(self, function: Callable[[T], None], items: Sequence[T]) -> None:
        """Raises what a failing call raised, its own lane's first."""


@contextmanager
def lanes(most: int | None = None) -> Iterator[Each]:
    """As many lanes as torch may use threads; inside, torch and BLAS compute on one thread.

    Args:
        most: no more lanes than this, where each needs much memory.
    """
    threads = torch.get_num_threads()
    width = threads if most is None else max(1, min(threads, most))
    with _blas_on_one_thread:
        if threads == 1:
            yield _one_after_another
            return
        torch.set_num_threads(1)
        try:
            with pool_of(width, threads_each=1) as pool:

                def each(function: Callable[[T], None], items: Sequence[T]) -> None:
                    def lane(first: int) -> None:
                        _one_after_another(function, items[first::width])

                    others = [pool.submit(lane, i) for i in range(1, min(width, len(items)))]
                    lane(0)
                    for other in others:
                        other.result()

                yield each
        finally:
            torch.set_num_threads(threads)  # also what threads that start later begin with


def pool_of(width: int, threads_each: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch may use so many threads."""

    def begin() -> None:
        # A thread takes over the number that was set last, by whomever, when it first asks for it;
        # it must not do so after its own was set.
        torch.get_num_threads()
        torch.set_num_threads(threads_each)

    return ThreadPoolExecutor(width, initializer=begin)


def _one_after_another(function: Callable[[T], None], items: Sequence[T]) -> None:
    for item in items:
        function(item)


class _BlasOnOneThread:
    """Limits BLAS while any thread is inside: its limit holds for the whole process.

    OpenBLAS lets only that thread change the limit which did so first, so one thread does it all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="blas-limit")
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = self._owner.submit(_limit_blas).result()

    def __exit__(self, *_exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._owner.submit(self._limit.restore_original_limits).result()


def _limit_blas() -> Any:
    return _blas().limit(limits=1, user_api="blas")


_blas_on_one_thread = _BlasOnOneThread()


@cache
def _blas() -> ThreadpoolController:
    """The thread pools of the BLAS libraries in this process, found once, which takes a moment."""
    return ThreadpoolController()
