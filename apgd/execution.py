"""Who works on the layers of a merge: this process, or others."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from apgd.lanes import pool_of

if TYPE_CHECKING:
    from apgd.task_vectors import TaskVectors

T = TypeVar("T")
R = TypeVar("R")

SPARE_BYTES = 2**28


class Executor(Protocol):
    """Calls a function with task vectors and every item, wherever it likes."""

    def map(
        self,
        function: "Callable[[TaskVectors, T], R]",
        vectors: "TaskVectors",
        items: Sequence[T],
        bytes_of: Sequence[int],
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every item, as they are done.

        Args:
            function: what to call; picklable, and a pure function of its arguments, so that a call
                that was lost can be repeated.
            vectors: its first argument.
            items: its second argument, in the order in which they should begin.
            bytes_of: working memory that each needs.
        """


class Here:
    """This process: several items at a time where memory allows, or else all threads on one.

    Args:
        memory: working memory in bytes; where None, what the largest item needs and 256 MiB.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory

    def map(
        self,
        function: "Callable[[TaskVectors, T], R]",
        vectors: "TaskVectors",
        items: Sequence[T],
        bytes_of: Sequence[int],
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every item, as they are done."""
        threads = torch.get_num_threads()
        largest = max(bytes_of, default=1)
        memory = largest + SPARE_BYTES if self.memory is None else self.memory
        width = max(1, min(threads, len(items), memory // max(1, largest)))
        if width == 1 or vectors.device.type != "cpu":
            for index, item in enumerate(items):
                yield index, function(vectors, item)
                give_back_memory()
            return
        begun: set[Future[tuple[int, R]]] = set()
        try:
            with pool_of(width, threads_each=max(1, threads // width)) as pool:
                for index in range(len(items)):
                    begun.add(pool.submit(_call, function, vectors, items, index))
                    if len(begun) == width:
                        done, begun = wait(begun, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in as_completed(begun))
        finally:
            torch.set_num_threads(threads)  # what threads that start later begin with


def give_back_memory() -> None:
    """Return freed memory to the system, of which glibc would keep hundreds of megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries have no such function, nor the need
        trim(0)


def _call(
    function: "Callable[[TaskVectors, T], R]",
    vectors: "TaskVectors",
    items: Sequence[T],
    index: int,
) -> tuple[int, R]:
    return index, function(vectors, items[index])
