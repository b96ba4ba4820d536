"""Task vectors that are changed before a method combines them."""

import math
from collections.abc import Callable

from torch import Tensor

from apgd.task_vectors import TaskVectors

_FLOAT32 = 4

Change = Callable[[str, Tensor], Tensor]
"""Name and task vectors τ (N, m, n) of a matrix -> others of the same shape; picklable and pure. It
leaves τ as it is."""


class Transformed(TaskVectors):
    """The task vectors of `vectors` after a change, matrix by matrix.

    They are read, kept and worked on as `vectors` are; where those are not kept in memory, the
    change is computed anew whenever a matrix is read.

    Args:
        vectors: the experts' own task vectors, or what another change made of them.
        change: what to make of a matrix's.
        holds: memory in bytes that the change needs, from a matrix's shape and the number of
            experts; twice τ and six further matrices, where None.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        change: Change,
        holds: Callable[[tuple[int, int], int], int] | None = None,
    ) -> None:
        self.__dict__.update(vectors.__dict__)
        self._kept = {}
        self._original = vectors
        self._change = change
        self._holds = holds or changing_bytes

    def __getitem__(self, name: str) -> Tensor:
        """The changed τ of one merged parameter, (N, m, n) float32."""
        if name in self._kept:
            return self._kept[name].to(self.device)
        return self._remembered(name, self._change(name, self._original[name]))

    def working_bytes(self, name: str) -> int:
        """Memory in bytes that is enough to read and change one parameter."""
        rows, columns = self.shape(name)
        return max(self._original.working_bytes(name), self._holds((rows, columns), len(self)))


def changing_bytes(shape: tuple[int, int], experts: int) -> int:
    """Memory in bytes that most changes need: for τ, what becomes of it, and six matrices."""
    return _FLOAT32 * math.prod(shape) * (2 * experts + 6)
