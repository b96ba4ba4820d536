"""Singular directions of several matrices, side by side."""

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.lanes import lanes
from apgd.projective import decompositions_at_once
from apgd.strips import by_strips
from apgd.subspaces import SingularTriplets, polar, polar_cost


class Directions:
    """Places for so many directions; those that none is put in stay zero, and change nothing.

    Args:
        tau: task vectors (N, m, n) that the directions belong to.
        count: how many places there are.
    """

    def __init__(self, tau: Tensor, count: int) -> None:
        _, m, n = tau.shape
        self.left: Tensor = tau.new_zeros(m, count)
        """U, (m, count)."""
        self.right: Tensor = tau.new_zeros(n, count)
        """V, (n, count)."""
        self.values: Tensor = torch.zeros(count, dtype=torch.float64, device=tau.device)
        """Their singular values."""

    def put(self, first: int, found: SingularTriplets) -> None:
        """Put these at this place and those after it."""
        places = slice(first, first + len(found.values))
        self.left[:, places], self.right[:, places] = found.left, found.right
        self.values[places] = found.values

    def orthogonalised(self, values: Tensor | float) -> Tensor:  # (m, n)
        """U diag(values) Vᵀ of the nearest U and V that are orthonormal; these go into place.

        Where there are more directions than a side has dimensions, that side's rows become so.
        """

        def orthogonalise(side: Tensor) -> None:
            polar(side, out=side)

        longest, count = max(len(self.left), len(self.right)), len(self.values)
        with lanes(most=decompositions_at_once(max(1, min(longest, count)))) as each:
            each(orthogonalise, (self.left, self.right))
        scaled = self.left.mul_(values)
        shape = self.left.new_empty(1, len(self.left), len(self.right))
        return by_strips(shape, lambda _part, rows: scaled[rows] @ self.right.T)


def directions_bytes(shape: tuple[int, int], count: int) -> int:
    """Memory in bytes for so many directions, and for making them orthonormal in float64.

    Both sides are worked on at once; each needs its Gram matrix, the eigenvectors with LAPACK's
    working space, and what is made of these.
    """
    return 4 * count * sum(shape) + sum(40 * min(side, count) ** 2 for side in shape)


def directions_cost(shape: tuple[int, int], count: int) -> Cost:
    """The work of making so many directions orthonormal and putting them together."""
    m, n = shape
    return polar_cost((m, count)) + polar_cost((n, count)) + Cost(flops=2 * m * n * count)
