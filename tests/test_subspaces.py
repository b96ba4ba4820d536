"""Leading singular subspaces against a full decomposition."""

import pytest
import torch
from torch import Tensor

from apgd import eigenvectors, subspaces
from apgd.subspaces import (
    leading_left_singular_vectors,
    leading_singular_triplets,
    polar,
)


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1)])
def test_leading_singular_vectors_span_what_svd_spans(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    u = torch.linalg.svd(matrix, full_matrices=False).U
    for count in range(min(shape) + 1):
        ours = leading_left_singular_vectors(matrix, count)
        theirs = u[:, :count]
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-10, rtol=0)


def test_directions_without_singular_value_are_left_out() -> None:
    left, right = random(9, 2), random(9, 2, seed=1)
    rank_two = left @ right.T
    assert leading_left_singular_vectors(rank_two, 6).shape == (9, 2)
    assert leading_left_singular_vectors(torch.zeros(4, 3), 2).shape == (4, 0)


@pytest.mark.parametrize("shape", [(600, 300), (300, 600), (1300, 20), (20, 1300)])
def test_blocks_of_the_gram_matrix_fit_together(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    u = torch.linalg.svd(matrix, full_matrices=False).U[:, :15]
    ours = leading_left_singular_vectors(matrix, 15)
    torch.testing.assert_close(ours @ ours.T, u @ u.T, atol=1e-9, rtol=0)


def test_small_singular_values_keep_their_vectors_in_single_precision() -> None:
    """Squaring 1e-4 leaves 1e-8, which a Gram matrix in float32 would lose."""
    left = torch.linalg.qr(random(40, 40)).Q
    right = torch.linalg.qr(random(50, 50, seed=1)).Q[:, :40]
    values = torch.logspace(0, -4, 40, dtype=torch.float64)
    matrix = (left * values) @ right.T
    ours = leading_left_singular_vectors(matrix.float(), 39).double()
    expected = left[:, :39]
    assert (ours @ ours.T - expected @ expected.T).norm() < 0.02
    gram = matrix.float() @ matrix.float().T
    naive = torch.linalg.eigh(gram).eigenvectors[:, 1:].double()
    assert (naive @ naive.T - expected @ expected.T).norm() > 0.1


def test_small_but_real_directions_count() -> None:
    left = torch.linalg.qr(random(3000, 6)).Q
    right = torch.linalg.qr(random(40, 6, seed=1)).Q
    matrix = (left * torch.tensor([1, 1, 1, 1, 1e-4, 1e-4], dtype=torch.float64)) @ right.T
    assert leading_left_singular_vectors(matrix.float(), 6).shape == (3000, 6)


def test_columns_are_orthonormal_and_in_order() -> None:
    left = torch.linalg.qr(random(12, 12)).Q
    matrix = left * torch.arange(12, 0, -1)
    ours = leading_left_singular_vectors(matrix, 5)
    torch.testing.assert_close(ours.abs(), left[:, :5].abs(), atol=1e-12, rtol=0)
    torch.testing.assert_close(ours.T @ ours, torch.eye(5, dtype=torch.float64))


def test_lapack_and_torch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, which has no dsyevr, gives the same subspace."""
    matrix = random(30, 70)
    ours = leading_left_singular_vectors(matrix, 9)

    def like_a_gpu(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(gram)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]

    monkeypatch.setattr(subspaces, "leading_eigenvectors", like_a_gpu)
    theirs = leading_left_singular_vectors(matrix, 9)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-11, rtol=0)


def test_a_failure_of_lapack_is_not_silent() -> None:
    with pytest.raises(RuntimeError, match="dsyevr failed"):
        eigenvectors._some_eigenvectors(torch.full((4, 4), float("nan"), dtype=torch.float64), 2)


SHAPES = [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1), (1300, 20), (300, 260)]


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_are_those_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    for count in {1, min(shape) // 2, min(shape)}:
        ours = leading_singular_triplets(matrix, count)
        torch.testing.assert_close(ours.values, s[:count])
        # Pairs may change sign together, so what is compared is made of both.
        made = ours.left @ torch.diag(ours.values.sqrt()) @ ours.right.T
        expected = u[:, :count] @ torch.diag(s[:count].sqrt()) @ vh[:count]
        torch.testing.assert_close(made, expected, atol=1e-9, rtol=0)
        for side in (ours.left, ours.right):
            torch.testing.assert_close(side.T @ side, torch.eye(count, dtype=torch.float64))


def test_triplets_leave_out_what_is_zero() -> None:
    left, right = random(9, 2), random(6, 2, seed=1)
    found = leading_singular_triplets(left @ right.T, 6)
    assert (found.left.shape, found.right.shape, found.values.shape) == ((9, 2), (6, 2), (2,))
    torch.testing.assert_close((found.left * found.values) @ found.right.T, left @ right.T)
    assert len(leading_singular_triplets(torch.zeros(4, 3), 2).values) == 0
    assert leading_singular_triplets(left, 0).left.shape == (9, 0)


def test_triplets_leave_out_what_rounding_left_of_something_larger() -> None:
    rest = 1e-7 * random(9, 6)
    assert len(leading_singular_triplets(rest, 3).values) == 3
    assert len(leading_singular_triplets(rest, 3, least_scale=1.0).values) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_is_that_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = polar(matrix)
    torch.testing.assert_close(found.factor, u @ vh, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.values, s)
    in_place = matrix.clone()
    assert polar(in_place, out=in_place).factor is in_place
    assert torch.equal(in_place, found.factor)


def test_polar_factor_of_single_precision_is_that_of_the_matrix() -> None:
    left = torch.linalg.qr(random(50, 40)).Q
    right = torch.linalg.qr(random(40, 40, seed=1)).Q
    values = torch.logspace(0, -4, 40, dtype=torch.float64)
    matrix = ((left * values) @ right.T).float()
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    factor = polar(matrix).factor
    assert factor.dtype == torch.float32
    torch.testing.assert_close(factor.double(), u @ vh, atol=1e-6, rtol=0)


def test_polar_factor_without_full_rank_is_the_part_that_is_determined() -> None:
    left, right = (torch.linalg.qr(random(n, 3, seed=n)).Q for n in (9, 6))
    matrix = (left * torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)) @ right.T
    found = polar(matrix)
    torch.testing.assert_close(found.factor, left @ right.T)
    assert len(found.values) == 3
    padded = torch.nn.functional.pad(matrix, (0, 4, 0, 5))
    expected = torch.nn.functional.pad(found.factor, (0, 4, 0, 5))
    torch.testing.assert_close(polar(padded).factor, expected)
    assert torch.equal(polar(torch.zeros(4, 3)).factor, torch.zeros(4, 3))


def test_all_eigenvectors_and_some_of_them_agree() -> None:
    """LAPACK finds all and some in different ways."""
    matrix = random(40, 60)
    gram = matrix @ matrix.T
    values, vectors = eigenvectors.leading_eigenvectors(gram.clone(), 40)
    for count in (5, 9, 10, 11, 39):
        some = eigenvectors.leading_eigenvectors(gram.clone(), count)
        torch.testing.assert_close(some[0], values[:count])
        ours, theirs = some[1], vectors[:, :count]
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-11, rtol=0)
