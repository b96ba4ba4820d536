"""APGD's maths against closed forms and against a naive version that follows the paper's text."""

import pytest
import torch
from torch import Tensor

from apgd import projective


def task_vectors(count: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.05 * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def naive_modification(
    tau: Tensor, coefficients: Tensor, subspace: Tensor, iterations: int, learning_rate: float
) -> Tensor:
    """Autograd and torch.optim.Adam on the loss as it is written in the paper."""
    delta = torch.zeros_like(tau[0], requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=learning_rate)
    projector = subspace @ subspace.T
    for _ in range(iterations):
        optimizer.zero_grad()
        merged = sum(c * (t + delta) for c, t in zip(coefficients, tau, strict=True))
        loss = sum((t * (t - merged)).sum(dim=1).square().sum() for t in tau)
        loss.backward()
        delta.grad -= projector @ delta.grad
        optimizer.step()
    return delta.detach()


def test_coefficients_are_eta_over_the_norm() -> None:
    tau = torch.zeros(3, 2, 2)
    tau[0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    tau[1, 0, 0] = 0.5
    coefficients = projective.task_aware_coefficients(tau, 0.1)
    torch.testing.assert_close(coefficients, torch.tensor([0.02, 0.2, 0.0]))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1)])
def test_leading_singular_vectors_span_what_svd_spans(shape: tuple[int, int]) -> None:
    matrix = task_vectors(1, shape)[0]
    u = torch.linalg.svd(matrix, full_matrices=False).U
    for count in range(min(shape) + 1):
        ours = projective.leading_left_singular_vectors(matrix, count)
        theirs = u[:, :count]
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-10, rtol=0)


def test_directions_without_singular_value_are_left_out() -> None:
    left, right = task_vectors(2, (9, 2))
    rank_two = left @ right.T
    assert projective.leading_left_singular_vectors(rank_two, 6).shape == (9, 2)
    assert projective.leading_left_singular_vectors(torch.zeros(4, 3), 2).shape == (4, 0)


def test_shared_subspace_of_orthogonal_tasks_is_their_union() -> None:
    tau = torch.zeros(2, 4, 3)
    tau[0, 0, 0] = 1.0
    tau[1, 2, 1] = 5.0
    subspace = projective.shared_subspace(tau, 1, 2)
    projector = torch.diag(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(subspace @ subspace.T, projector)


def test_shared_subspace_prefers_what_tasks_share() -> None:
    tau = torch.zeros(3, 4, 3)
    tau[:2, 1, 0] = 1.0  # two tasks agree on direction 1, the third has direction 3
    tau[2, 3, 0] = 9.0
    subspace = projective.shared_subspace(tau, 1, 1)
    torch.testing.assert_close(subspace.abs(), torch.tensor([[0.0], [1.0], [0.0], [0.0]]))


def test_gap_loss_by_hand() -> None:
    tau = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 1.0]]])
    coefficients = torch.tensor([0.5, 0.25])
    # merged = 0.5 τ1 + 0.25 τ2; row sums of τ ⊙ (τ − merged), squared:
    # task 1: 1·(1−1.25) + 2·(2−1) = 1.75; 0·… + 1·(1−0.75) = 0.25
    # task 2: 3·(3−1.25) + 0 = 5.25;      1·(1−0.25) + 1·(1−0.75) = 1.0
    loss = projective.gap_loss(tau, coefficients, torch.zeros(2, 2))
    assert loss == pytest.approx(1.75**2 + 0.25**2 + 5.25**2 + 1.0**2)


def test_the_loss_sums_rows_before_squaring() -> None:
    tau = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    swapped = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    coefficients = torch.tensor([3.0])
    zero = torch.zeros(2, 2)
    # One inner product over the whole matrix would give (2·(1−3))² = 16 for both.
    assert projective.gap_loss(tau, coefficients, zero) == pytest.approx(8.0)
    assert projective.gap_loss(swapped, coefficients, zero) == pytest.approx(8.0)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1)])
@pytest.mark.parametrize(("count", "k"), [(1, 0), (1, 1), (3, 1), (8, 1), (3, 5)])
def test_modification_vector_equals_autograd(shape: tuple[int, int], count: int, k: int) -> None:
    tau = task_vectors(count, shape, seed=count)
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, k, k)
    ours = projective.modification_vector(tau, coefficients, subspace, 50, 1e-4)
    naive = naive_modification(tau, coefficients, subspace, 50, 1e-4)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)


def test_modification_vector_equals_autograd_on_degenerate_task_vectors() -> None:
    one = task_vectors(1, (8, 6))[0]
    low_rank = task_vectors(1, (8, 1))[0] @ task_vectors(1, (1, 6))[0]
    for tau in (
        torch.stack([one, one, one]),  # duplicates
        torch.stack([one, -one]),  # cancel
        torch.stack([one, torch.zeros_like(one)]),
        torch.stack([one, low_rank]),
        torch.zeros(2, 8, 6, dtype=torch.float64),
    ):
        coefficients = projective.task_aware_coefficients(tau, 0.07)
        subspace = projective.shared_subspace(tau, 3, 3)
        ours = projective.modification_vector(tau, coefficients, subspace, 30, 1e-4)
        naive = naive_modification(tau, coefficients, subspace, 30, 1e-4)
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)


def test_modification_lowers_the_loss() -> None:
    tau = task_vectors(4, (16, 12))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 4, 4)
    before = projective.gap_loss(tau, coefficients, torch.zeros_like(tau[0]))
    losses = [
        projective.gap_loss(
            tau,
            coefficients,
            projective.modification_vector(tau, coefficients, subspace, steps, 1e-4),
        )
        for steps in (50, 400)
    ]
    assert losses[1] < losses[0] < before


def test_full_subspace_leaves_nothing_to_modify() -> None:
    tau = task_vectors(3, (4, 9))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    everything = torch.eye(4, dtype=torch.float64)
    delta = projective.modification_vector(tau, coefficients, everything, 20, 1e-4)
    assert delta.abs().max() < 1e-9


def test_first_step_moves_by_the_learning_rate() -> None:
    tau = task_vectors(2, (6, 6))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    one = projective.modification_vector(tau, coefficients, subspace, 1, 1e-4)
    # Adam's first step is lr · g / (|g| + eps): lr wherever the gradient is well above eps.
    assert one.abs().max() == pytest.approx(1e-4, rel=1e-3)


def test_masked_sum_by_hand() -> None:
    tau = torch.tensor([[[1.0, -2.0]], [[-3.0, 0.5]]])
    modification = torch.tensor([[10.0, 20.0]])
    merged = projective.masked_sum(
        tau, torch.tensor([0.1, 0.01]), modification, torch.tensor([1.5, 0.5])
    )
    # Only −2 of the first is kept; both of the second.
    expected = torch.tensor([[0.01 * (-3 + 10), 0.1 * (-2 + 20) + 0.01 * (0.5 + 20)]])
    torch.testing.assert_close(merged, expected)


def test_order_of_experts_does_not_matter() -> None:
    tau = task_vectors(5, (9, 7))
    order = torch.tensor([3, 0, 4, 1, 2])

    def merged(vectors: Tensor) -> Tensor:
        coefficients = projective.task_aware_coefficients(vectors, 0.07)
        subspace = projective.shared_subspace(vectors, 1, 1)
        delta = projective.modification_vector(vectors, coefficients, subspace, 40, 1e-4)
        return projective.masked_sum(vectors, coefficients, delta, torch.zeros(5))

    torch.testing.assert_close(merged(tau), merged(tau[order]), rtol=1e-9, atol=1e-12)
