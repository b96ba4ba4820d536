"""Leading singular subspaces against a full decomposition."""

import pytest
import torch
from torch import Tensor

from apgd import subspaces
from apgd.subspaces import leading_left_singular_vectors


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

    monkeypatch.setattr(subspaces, "_leading_eigenvectors", like_a_gpu)
    theirs = leading_left_singular_vectors(matrix, 9)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-11, rtol=0)


def test_a_failure_of_lapack_is_not_silent() -> None:
    with pytest.raises(RuntimeError, match="dsyevr failed"):
        subspaces._some_eigenvectors(torch.full((4, 4), float("nan"), dtype=torch.float64), 2)
