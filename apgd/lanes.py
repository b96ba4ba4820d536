"""Lanes: functions run side by side, each computing on one thread.

torch's own threads split sums in ways that depend on their number, so the same product has other
last bits on another machine. Here the work is cut into pieces that do not depend on the number of
threads, each piece is computed on one thread, and only who computes it varies.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


class Each(Protocol):
    """Calls a function with every item, several at a time, and returns when all are done."""

    def __call__(self, function: Callable[[T], None], items: Sequence[T]) -> None:
        """Raises what the first failing call raised."""


@contextmanager
def lanes(most: int | None = None) -> Iterator[Each]:
    """As many lanes as torch may use threads; inside, torch and SciPy compute on one thread.

    Args:
        most: no more lanes than this, where each needs much memory.
    """
    threads = torch.get_num_threads()
    width = threads if most is None else max(1, min(threads, most))
    with _blas().limit(limits=1, user_api="blas"):
        if threads == 1:
            yield _one_after_another
            return
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(
                width, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:

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


def _one_after_another(function: Callable[[T], None], items: Sequence[T]) -> None:
    for item in items:
        function(item)


@cache
def _blas() -> ThreadpoolController:
    """The thread pools of the BLAS libraries in this process, found once, which takes a moment."""
    import scipy.linalg  # noqa: F401 - loads the BLAS that is to be found

    return ThreadpoolController()
