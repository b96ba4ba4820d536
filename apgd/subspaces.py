"""Singular vectors and polar factors, from the Gram matrix of a matrix's smaller side.

The Gram matrix and what follows from it are in float64, so that squaring the singular values costs
no accuracy at float32. Directions whose singular value is zero up to rounding are left out: they
are arbitrary, and whatever is made of them would be too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.eigenvectors import leading_eigenvectors

_PANEL = 1024
_ROUNDING = 4


@dataclass(frozen=True)
class SingularTriplets:
    """Some of a matrix's singular values, in descending order, and their vectors; all float64."""

    left: Tensor
    """U, (m, k)."""
    values: Tensor
    """S, (k,)."""
    right: Tensor
    """V, (n, k)."""


@dataclass(frozen=True)
class Polar:
    """What is left of a matrix when every singular value that is not zero becomes 1."""

    factor: Tensor
    """U Vᵀ, (m, n), in the matrix's type."""
    values: Tensor
    """The singular values that became 1, in descending order, float64."""


def leading_left_singular_vectors(
    matrix: Tensor,  # (m, n)
    count: int,
) -> Tensor:  # (m, min(count, rank))
    """The left singular vectors of the `count` largest singular values, in descending order."""
    m, n = matrix.shape
    _squares, leading = _leading_of_smaller_side(matrix, count)
    if m > n:
        # A v_i = σ_i u_i: orthogonal columns, which QR normalises without dividing by a small σ_i.
        leading = torch.linalg.qr(_wide_product(matrix, leading)).Q
    return leading.to(matrix.dtype)


def leading_singular_triplets(
    matrix: Tensor,  # (m, n)
    count: int,
    least_scale: float = 0.0,
) -> SingularTriplets:  # min(count, rank) of them
    """The `count` largest singular values and their vectors; a pair's sign is arbitrary.

    Args:
        matrix: the matrix.
        count: how many.
        least_scale: where the matrix is what is left of a larger one, that one's size; singular
            values that are zero up to its rounding are left out too.
    """
    m, n = matrix.shape
    _squares, known = _leading_of_smaller_side(matrix, count, least_scale)
    other = _wide_product(matrix if m > n else matrix.T, known)  # σ_i times the other side's
    values = torch.linalg.vector_norm(other, dim=0)
    other /= values
    return SingularTriplets(*((other, values, known) if m > n else (known, values, other)))


def polar(
    matrix: Tensor,  # (m, n)
    out: Tensor | None = None,
) -> Polar:
    """The polar factor: the nearest matrix with orthonormal columns, or rows if they are fewer.

    Of a matrix without full rank it has orthonormal columns only on the rows' span, and is unique,
    where the factor of a complete decomposition is not.

    Args:
        matrix: A.
        out: where the factor goes, for example `matrix` itself; new memory where None.
    """
    m, n = matrix.shape
    tall = matrix if m > n else matrix.T
    squares, vectors = _leading_of_smaller_side(matrix, min(m, n))
    root = (vectors * squares.rsqrt()) @ vectors.T  # (AᵀA)^(-1/2) of a tall A
    del vectors
    factor = torch.empty_like(matrix) if out is None else out
    _wide_product(tall, root, factor if m > n else factor.T)
    return Polar(factor, squares.sqrt())


def triplets_cost(shape: tuple[int, int], count: int) -> Cost:
    """The work of `leading_singular_triplets`.

    The weights here and in `polar_cost` (float64, and much of it slower than a matrix product) are
    from measurements.
    """
    (m, n), rank = shape, min(shape)
    eigenvectors = (10 if 4 * count < rank else 16) * rank**3
    return Cost(flops=4 * m * n * (rank + min(count, rank)) + eigenvectors)


def polar_cost(shape: tuple[int, int]) -> Cost:
    """The work of `polar`."""
    (m, n), rank = shape, min(shape)
    return Cost(flops=8 * m * n * rank + 20 * rank**3)


def real_directions(
    squares: Tensor,  # (k,), squared singular values in descending order
    longest: int,  # max(m, n)
    least_scale: float = 0.0,
) -> int:
    """How many singular values are not zero up to rounding.

    Entries rounded to float32 leave singular values of about √max(m, n) · eps of the largest, or
    of `least_scale` if that is larger.
    """
    largest = squares[0].clamp(min=least_scale**2)
    cutoff = largest * longest * (_ROUNDING * torch.finfo(torch.float32).eps) ** 2
    return int((squares > cutoff).sum())


def _leading_of_smaller_side(
    matrix: Tensor,  # (m, n)
    count: int,
    least_scale: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (k,), (min(m, n), k): float64
    """Squared singular values, and their vectors on the side that is shorter."""
    m, n = matrix.shape
    count = min(count, m, n)
    if count == 0:
        nothing = torch.zeros(min(m, n), 0, dtype=torch.float64, device=matrix.device)
        return nothing.new_zeros(0), nothing
    squares, vectors = leading_eigenvectors(_gram(matrix if m <= n else matrix.T), count)
    real = real_directions(squares, max(m, n), least_scale)
    return squares[:real], vectors[:, :real]


def _gram(
    matrix: Tensor,  # (m, n), m <= n
) -> Tensor:  # (m, m), float64
    """A Aᵀ; A is widened to float64 a few columns at a time, so no second copy of it is needed."""
    m, n = matrix.shape
    gram = torch.zeros(m, m, dtype=torch.float64, device=matrix.device)
    for first in range(0, n, _PANEL):
        columns = matrix[:, first : first + _PANEL].double()
        if columns.device.type == "cpu":
            array = columns.numpy()
            gram += torch.from_numpy(array @ array.T)  # NumPy sees the symmetry, and does half
        else:
            gram.addmm_(columns, columns.T)
    return gram


def _wide_product(
    matrix: Tensor,  # (m, n)
    vectors: Tensor,  # (n, k), float64
    out: Tensor | None = None,  # (m, k)
) -> Tensor:  # (m, k), float64 where `out` is None
    """The product, computed in float64, a few rows at a time; `out` may be `matrix`."""
    product = vectors.new_empty(matrix.shape[0], vectors.shape[1]) if out is None else out
    for first in range(0, matrix.shape[0], _PANEL):
        rows = slice(first, first + _PANEL)
        product[rows] = matrix[rows].double() @ vectors
    return product
