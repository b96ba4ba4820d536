"""Task vectors a strip of rows at a time, so that what is computed from them needs little memory.

The strips depend on the shape alone, so results do not depend on the number of threads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from apgd.lanes import lanes

_ENTRIES = 2**18


def strips(
    tau: Tensor,  # (N, m, n)
) -> list[slice]:
    """Row ranges of about 2^18 entries of τ each."""
    count, m, n = tau.shape
    rows = max(1, _ENTRIES // (count * n))
    return [slice(low, min(low + rows, m)) for low in range(0, m, rows)]


def by_strips(
    tau: Tensor,  # (N, m, n)
    function: Callable[[Tensor, slice], Tensor],  # (N, rows, n), the rows -> (rows, n)
) -> Tensor:  # (m, n)
    """What `function` makes of every strip, one below the other."""
    result = tau.new_empty(tau.shape[1:])

    def fill(rows: slice) -> None:
        result[rows] = function(tau[:, rows], rows)

    with lanes() as each:
        each(fill, strips(tau))
    return result


def sums_by_strips(
    tau: Tensor,  # (N, m, n)
    function: Callable[[Tensor, slice], Tensor],  # (N, rows, n), the rows -> any shape
) -> Tensor:  # that shape, float64
    """The sum over the strips of what `function` makes of them, always added in the same order."""
    ranges = strips(tau)
    parts = [tau.new_empty(0)] * len(ranges)

    def fill(number: int) -> None:
        parts[number] = function(tau[:, ranges[number]], ranges[number]).double()

    with lanes() as each:
        each(fill, range(len(ranges)))
    return torch.stack(parts).sum(dim=0)
