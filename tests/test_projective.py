"""APGD's maths against closed forms and against a naive version that follows the paper's text."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from apgd import fused, projective, strips, subspaces


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


# The last ones need several strips and groups of strips.
SHAPES = [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1), (450, 3), (3, 1100), (3300, 4)]
ENGINES = pytest.mark.parametrize("engine", [projective, fused], ids=["plain", "fused"])


def degenerate() -> dict[str, Tensor]:
    one = task_vectors(1, (8, 6))[0]
    low_rank = task_vectors(1, (8, 1))[0] @ task_vectors(1, (1, 6))[0]
    return {
        "duplicates": torch.stack([one, one, one]),
        "cancelling": torch.stack([one, -one]),
        "all cancelling": torch.stack([one, -one, one, -one]),
        "one is zero": torch.stack([one, torch.zeros_like(one)]),
        "rank one": torch.stack([one, low_rank]),
        "all zero": torch.zeros(2, 8, 6, dtype=torch.float64),
        "nearly equal": torch.stack([one, one + 1e-9 * low_rank]),
        "huge and tiny": torch.stack([1e6 * one, 1e-6 * low_rank]),
    }


@ENGINES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_modification_vector_equals_autograd(
    engine: ModuleType, shape: tuple[int, int], count: int
) -> None:
    tau = task_vectors(count, shape, seed=count)
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    for k in sorted({0, 1, min(shape) // count, min(shape)}):
        subspace = projective.shared_subspace(tau, k, k)
        if subspace.shape[1] == shape[0]:
            continue  # nothing is left but rounding, which Adam blows up; a test of its own
        ours = engine.modification_vector(tau, coefficients, subspace, 12, 1e-4)
        naive = naive_modification(tau, coefficients, subspace, 12, 1e-4)
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-13)


@ENGINES
@pytest.mark.parametrize("case", degenerate())
def test_modification_vector_equals_autograd_on_degenerate_task_vectors(
    engine: ModuleType, case: str
) -> None:
    tau = degenerate()[case]
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 3, 3)
    ours = engine.modification_vector(tau, coefficients, subspace, 30, 1e-4)
    naive = naive_modification(tau, coefficients, subspace, 30, 1e-4)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)


def least_squares(tau: Tensor, coefficients: Tensor, subspace: Tensor) -> Tensor:
    """The constrained minimiser of smallest norm by a dense pseudo-inverse."""
    count, m, n = tau.shape
    projector = torch.eye(m, dtype=tau.dtype) - subspace @ subspace.T
    whole = torch.kron(projector, torch.eye(n, dtype=tau.dtype))  # of the flattened Δ
    rows = torch.zeros(count * m, m * n, dtype=tau.dtype)
    for i in range(count):
        for row in range(m):
            rows[i * m + row, row * n : (row + 1) * n] = tau[i, row]
    merged = torch.einsum("i,imn->mn", coefficients, tau)
    target = (tau * (tau - merged)).sum(dim=2).flatten()
    system = coefficients.sum() * rows @ whole
    return (torch.linalg.pinv(system, rtol=1e-10) @ target).view(m, n)


@ENGINES
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8), (1, 7), (7, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_exact_modification_vector_is_the_constrained_least_squares_solution(
    engine: ModuleType, shape: tuple[int, int], count: int
) -> None:
    tau = task_vectors(count, shape, seed=count)
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    for k in sorted({0, 1, min(shape) // 2}):
        subspace = projective.shared_subspace(tau, k, k)
        exact = engine.exact_modification_vector(tau, coefficients, subspace, 1e-13, 500)
        expected = least_squares(tau, coefficients, subspace)
        torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-8)
        assert (subspace.T @ exact).abs().max() < 1e-12 if subspace.shape[1] else True


@ENGINES
@pytest.mark.parametrize("case", [case for case in degenerate() if case != "huge and tiny"])
def test_exact_modification_vector_has_the_smallest_norm_where_many_solve(
    engine: ModuleType, case: str
) -> None:
    tau = degenerate()[case]
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    exact = engine.exact_modification_vector(tau, coefficients, subspace, 1e-10, 500)
    expected = least_squares(tau, coefficients, subspace)
    # Directions that 1e-9 sets apart are solved for by the pseudo-inverse, not by an iteration.
    loose = case == "nearly equal"
    gap = projective.gap_loss(tau, coefficients, exact)
    best = projective.gap_loss(tau, coefficients, expected)
    assert gap <= best * (1 + 1e-6) + 1e-12
    if not loose:
        torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-8)


def test_exact_solver_stops_at_its_tolerance_or_its_passes() -> None:
    tau = task_vectors(4, (16, 12))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 4, 4)
    losses = [
        projective.gap_loss(
            tau,
            coefficients,
            fused.exact_modification_vector(tau, coefficients, subspace, tolerance, passes),
        )
        for tolerance, passes in ((1e-12, 1), (0.5, 99), (1e-2, 99), (1e-6, 99), (1e-12, 99))
    ]
    assert losses[0] > losses[2] > losses[3] > losses[4]
    assert losses[1] >= losses[2]


@ENGINES
def test_nothing_is_modified_where_the_subspace_is_everything(engine: ModuleType) -> None:
    tau = task_vectors(3, (4, 9))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    everything = torch.eye(4, dtype=torch.float64)
    assert not engine.exact_modification_vector(tau, coefficients, everything, 1e-9, 50).any()
    adam = engine.modification_vector(tau, coefficients, everything, 20, 1e-4)
    assert adam.abs().max() < 1e-9


@pytest.mark.parametrize("solver", ["adam", "exact"])
@pytest.mark.parametrize("shape", [(700, 40), (40, 700), (260, 260)])
def test_bits_do_not_depend_on_the_number_of_threads(solver: str, shape: tuple[int, int]) -> None:
    tau = task_vectors(3, shape).float()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        coefficients = projective.task_aware_coefficients(tau, 0.07)
        subspace = projective.shared_subspace(tau, 13, 13)
        delta = (
            fused.modification_vector(tau, coefficients, subspace, 5, 1e-4)
            if solver == "adam"
            else fused.exact_modification_vector(tau, coefficients, subspace, 1e-3, 9)
        )
        results.append(projective.masked_sum(tau, coefficients, delta, torch.full((3,), 0.01)))
        assert torch.get_num_threads() == threads
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_sizes_of_strips_do_not_matter(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tau = task_vectors(3, (400, 450))

    def merged() -> Tensor:
        coefficients = projective.task_aware_coefficients(tau, 0.07)
        subspace = projective.shared_subspace(tau, 250, 250)  # one group of two strips
        delta = (
            fused.modification_vector(tau, coefficients, subspace, 6, 1e-4)
            if solver == "adam"
            else fused.exact_modification_vector(tau, coefficients, subspace, 1e-9, 99)
        )
        return projective.masked_sum(tau, coefficients, delta, torch.full((3,), 0.01))

    expected = merged()
    for module, name, value in (
        (strips, "_ENTRIES", 1000), (fused, "_MOST_ROWS", 37), (fused, "_LEAST_ROWS", 20),
        (fused, "_COLUMNS", 100), (subspaces, "_PANEL", 64), (projective, "_PART", 999),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
        torch.testing.assert_close(merged(), expected, rtol=1e-8, atol=1e-11)


@ENGINES
@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_order_of_experts_does_not_matter_to_the_engines(engine: ModuleType, solver: str) -> None:
    tau = task_vectors(5, (60, 31))
    order = torch.tensor([3, 0, 4, 1, 2])

    def found(vectors: Tensor) -> Tensor:
        coefficients = projective.task_aware_coefficients(vectors, 0.07)
        subspace = projective.shared_subspace(vectors, 6, 6)
        if solver == "adam":
            return engine.modification_vector(vectors, coefficients, subspace, 20, 1e-4)
        return engine.exact_modification_vector(vectors, coefficients, subspace, 1e-12, 200)

    torch.testing.assert_close(found(tau), found(tau[order]), rtol=1e-7, atol=1e-10)


def test_tiny_task_vectors_do_not_break_the_exact_solver() -> None:
    tau = 1e-40 * task_vectors(3, (9, 8))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    delta = fused.exact_modification_vector(tau, coefficients, subspace, 1e-9, 50)
    assert torch.isfinite(delta).all()


_DIGEST = """
import hashlib, torch
from apgd import fused
tau = torch.randn(3, 150, 161, generator=torch.Generator().manual_seed(0))
subspace = torch.eye(150)[:, :9].contiguous()
weights = torch.full((3,), 0.1)
adam = fused.modification_vector(tau, weights, subspace, 40, 1e-3)
exact = fused.exact_modification_vector(tau, weights, subspace, 1e-4, 9)
print(hashlib.sha256(torch.stack([adam, exact]).numpy().tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_whether_kernels_come_from_the_cache(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _DIGEST]
    compiled, cached = (
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc"))
    assert compiled == cached


def test_layout_in_memory_does_not_matter() -> None:
    tau = task_vectors(3, (20, 11))
    rows_together = tau.transpose(0, 1).contiguous().transpose(0, 1)
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 3, 3)
    ours = fused.modification_vector(tau, coefficients, subspace, 9, 1e-4)
    theirs = fused.modification_vector(rows_together, coefficients, subspace, 9, 1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_gap_loss_is_what_the_solvers_lower() -> None:
    """The residual form that the solvers use gives the loss as the paper writes it."""
    tau = task_vectors(3, (9, 7))
    coefficients = projective.task_aware_coefficients(tau, 0.3)
    delta = task_vectors(1, (9, 7), seed=5)[0]
    constants = projective.residual_constants(tau, coefficients)
    residuals = constants - coefficients.sum() * projective.row_products(tau, delta)
    loss = projective.gap_loss(tau, coefficients, delta)
    assert loss == pytest.approx(float(residuals.square().sum()), rel=1e-12)


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


@ENGINES
def test_first_step_moves_by_the_learning_rate(engine: ModuleType) -> None:
    tau = task_vectors(2, (6, 6))
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    one = engine.modification_vector(tau, coefficients, subspace, 1, 1e-4)
    # Adam's first step is lr · g / (|g| + eps): lr wherever the gradient is well above eps.
    assert one.abs().max() == pytest.approx(1e-4, rel=1e-3)


def test_masked_sum_by_hand() -> None:
    tau = torch.tensor([[[1.0, -2.0]], [[-3.0, 0.5]]])
    modification = torch.tensor([[10.0, 20.0]])
    merged = projective.masked_sum(
        tau, torch.tensor([0.1, 0.01]), modification, torch.tensor([1.5, 0.5])
    )
    assert projective.kept_shares(tau, torch.tensor([1.5, 0.5])).tolist() == [0.5, 1.0]
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


@pytest.mark.parametrize("engine", [projective, fused], ids=["plain", "fused"])
@pytest.mark.parametrize("shape", [(17, 5), (5, 17), (700, 40)])
def test_a_descent_can_be_continued_bit_by_bit(engine: ModuleType, shape: tuple[int, int]) -> None:
    tau = task_vectors(3, shape).float()
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    descent = engine.Descent(tau, coefficients, subspace, 1e-3)
    assert not descent.delta.any()
    for iterations in (1, 7, 7, 3, 30):  # fewer than there were change nothing
        descent.advance(iterations)
        most = max(1, descent.iterations)
        at_once = engine.modification_vector(tau, coefficients, subspace, most, 1e-3)
        assert torch.equal(descent.delta, at_once)
    assert descent.iterations == 30


@pytest.mark.parametrize("engine", [projective, fused], ids=["plain", "fused"])
def test_no_steps_modify_nothing(engine: ModuleType) -> None:
    tau = task_vectors(3, (9, 6)).float()
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    assert not engine.modification_vector(tau, coefficients, subspace, 0, 1e-3).any()
    assert not engine.modification_vectors(tau, coefficients, subspace, 0, 1e-3).any()
