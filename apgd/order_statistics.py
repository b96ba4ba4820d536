"""Exact order statistics of what is computed from task vectors, without sorting or storing it.

Numbers of float32 are ordered like their bits, once those of negative ones are turned round. So a
first pass counts the upper halves of the bits, and a second one the lower halves of those numbers
whose upper half is the wanted one; counts of matrices add up to those of a whole model.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from apgd.lanes import lanes
from apgd.strips import strips

Rows: TypeAlias = Callable[[int, slice], Tensor]
"""Number of an expert and rows of a matrix -> one float32 for each of its entries there."""

Scores: TypeAlias = Callable[[Tensor], Rows]
"""Task vectors τ (N, m, n) of a matrix -> the numbers that are ranked; picklable and pure. They are
asked for the rows of `strips(τ_i)`."""

Total: TypeAlias = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Function of τ (N, m, n) -> the sum of what it makes of every matrix, on the CPU."""

_LOW_BITS = 16
_HALF = 2**_LOW_BITS


def magnitudes(
    tau: Tensor,  # (N, m, n)
) -> Rows:
    """|τ_i|."""
    return lambda i, rows: tau[i, rows].abs()


def order_statistics(
    total: Total,
    ranks: Tensor,  # (N, R), from 1
    scores: Scores = magnitudes,
) -> Tensor:  # (N, R), float32 on the CPU
    """The numbers that come at these ranks in ascending order, for each expert separately.

    Every matrix is read twice.
    """
    upper, before = _bin_of(total(partial(_count_upper, scores)).unsqueeze(1), ranks)
    lower, _ = _bin_of(total(partial(_count_lower, scores, upper)), ranks - before)
    keys = (upper - _HALF // 2 << _LOW_BITS) | lower
    return _turned(keys.to(torch.int32)).view(torch.float32)


def of_one(
    tau: Tensor,  # (N, m, n)
) -> Total:
    """The total over one matrix."""
    return lambda function: function(tau)


def _turned(bits: Tensor) -> Tensor:
    """Bits of float32 <-> integers of the same order, both int32."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) if bits.min() < 0 else bits


def _count_upper(scores: Scores, tau: Tensor) -> Tensor:  # (N, 2^16)
    def of(keys: Tensor, _i: int) -> Tensor:
        return (keys >> _LOW_BITS).add_(_HALF // 2).bincount(minlength=_HALF)

    return _counts(scores, tau, (len(tau), _HALF), of)


def _count_lower(scores: Scores, upper: Tensor, tau: Tensor) -> Tensor:  # (N, R, 2^16)
    def of(keys: Tensor, i: int) -> Tensor:
        halves = keys >> _LOW_BITS
        wanted = (upper[i] - _HALF // 2).tolist()
        lower = [keys[halves == half] & (_HALF - 1) for half in wanted]
        return torch.stack([found.bincount(minlength=_HALF) for found in lower])

    return _counts(scores, tau, (*upper.shape, _HALF), of)


def _counts(
    scores: Scores, tau: Tensor, shape: tuple[int, ...], bins: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """How many numbers of every expert fall into each bin, of this shape, on the CPU."""
    rows_of = scores(tau)
    counts = torch.zeros(shape, dtype=torch.int64, device="cpu")

    def count(i: int) -> None:
        for rows in strips(tau[i : i + 1]):
            keys = _turned(rows_of(i, rows).contiguous().view(torch.int32).flatten())
            counts[i] += bins(keys, i).cpu()

    with lanes() as each:
        each(count, range(len(tau)))
    return counts


def _bin_of(
    counts: Tensor,  # (N, 1 or R, bins)
    ranks: Tensor,  # (N, R), from 1
) -> tuple[Tensor, Tensor]:  # (N, R), (N, R)
    """The bin that holds the number of this rank, and how many numbers lie in bins before it."""
    counts = counts.expand(-1, ranks.shape[1], -1)
    reached = counts.cumsum(dim=2)
    found = torch.searchsorted(reached, ranks.unsqueeze(2))
    before = reached.gather(2, found) - counts.gather(2, found)
    return found.squeeze(2), before.squeeze(2)
