"""WUDI-Merging against automatic differentiation, and in closed form."""

import pytest
import torch
from torch import Tensor

from apgd.methods import wudi
from tests.methods.matrices import close, combined, merged, orthonormal, random

SHAPES = [(24, 24), (12, 40), (40, 12), (4, 60), (200, 9), (1, 5), (7, 1)]
SOLVERS = pytest.mark.parametrize("solver", ["adam", "exact"])


def loss(merged: Tensor, tau: Tensor) -> Tensor:
    gaps = (merged - tau) @ tau.transpose(1, 2)
    return (gaps.square().sum(dim=(1, 2)) / tau.square().sum(dim=(1, 2))).sum()


def naive(tau: Tensor, steps: int = 300, learning_rate: float = 1e-5) -> Tensor:
    """By automatic differentiation and torch's own Adam, in float64."""
    tau = tau.double()
    merged = tau.sum(dim=0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(merged, tau).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return merged.detach().float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_adam_is_that_of_automatic_differentiation(shape: tuple[int, int], count: int) -> None:
    tau = 1e-3 * random(count, *shape)
    assert close(merged("wudi", tau), naive(tau))
    ours = merged("wudi", tau, iterations=40, learning_rate=1e-4, coefficient=0.5)
    assert close(ours, 0.5 * naive(tau, 40, 1e-4), 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_exact_solution_minimises_and_moves_least(shape: tuple[int, int], count: int) -> None:
    tau = random(count, *shape)
    found = combined("wudi", tau, solver="exact")
    # The least-squares problem min ‖D Tᵀ + C‖, by the pseudo-inverse.
    wide = tau.double()
    units = wide / wide.flatten(1).norm(dim=1).view(-1, 1, 1)
    start = wide.sum(dim=0)
    stacked = units.flatten(0, 1)  # (N m, n)
    gaps = torch.cat([(start - t) @ u.T for t, u in zip(wide, units, strict=True)], dim=1)
    expected = start - gaps @ torch.linalg.pinv(stacked, rtol=1e-6).T
    assert close(found.delta, expected.float(), 1e-5)
    assert found.details["loss_before"] == pytest.approx(float(loss(start, wide)), rel=1e-5)
    after = float(loss(found.delta.double(), wide))
    assert found.details["loss_after"] == pytest.approx(after, abs=1e-6 * float(loss(start, wide)))
    for seed in range(3):
        nearby = found.delta + 0.01 * random(1, *shape, seed=seed)[0]
        assert float(loss(nearby.double(), wide)) >= after - 1e-9


def test_long_descent_comes_to_the_exact_solution() -> None:
    tau = random(3, 10, 6)
    exact = combined("wudi", tau, solver="exact")
    long = combined("wudi", tau, iterations=4000, learning_rate=3e-3)
    assert close(long.delta, exact.delta, 1e-3)
    assert long.details["loss_after"] == pytest.approx(exact.details["loss_after"], rel=1e-3)


@SOLVERS
@pytest.mark.parametrize("shape", SHAPES)
def test_one_task_vector_is_kept(solver: str, shape: tuple[int, int]) -> None:
    tau = random(1, *shape)
    found = combined("wudi", tau, solver=solver)
    assert torch.equal(found.delta, tau[0])
    assert found.details == {"loss_before": 0, "loss_after": 0}


@SOLVERS
def test_task_vectors_on_different_inputs_are_added(solver: str) -> None:
    """Where rows of different tasks are orthogonal, nothing interferes."""
    basis = orthonormal(9, 9)
    tau = torch.stack([random(1, 5, 4)[0] @ basis[:4], random(1, 5, 5)[0] @ basis[4:]])
    found = merged("wudi", tau, solver=solver, learning_rate=1e-9)
    assert close(found, tau.sum(dim=0))


def test_equal_task_vectors_count_once() -> None:
    tau = random(1, 12, 8)
    assert close(merged("wudi", tau.repeat(3, 1, 1), solver="exact"), tau[0])


def test_opposite_task_vectors_stay_cancelled() -> None:
    tau = random(1, 12, 8)
    for solver in ("adam", "exact"):
        assert not merged("wudi", torch.cat([tau, -tau]), solver=solver).any()


def test_rows_that_no_task_has_stay_where_they_start() -> None:
    """Tasks of rank 2 and 1: in the other directions nothing pulls."""
    inputs = orthonormal(15, 3)
    tau = random(2, 20, 3) @ inputs.T
    ours = merged("wudi", tau, solver="exact")
    assert close(ours @ inputs @ inputs.T, ours)


@SOLVERS
def test_zero_task_vectors_change_nothing(solver: str) -> None:
    tau = random(2, 12, 8)
    padded = torch.cat([tau, torch.zeros(2, 12, 8)])
    assert close(merged("wudi", padded, solver=solver), merged("wudi", tau, solver=solver))
    assert not merged("wudi", torch.zeros(3, 6, 4), solver=solver).any()
    assert not merged("wudi", torch.zeros(1, 2, 40), solver=solver).any()


def test_the_exact_solution_turns_and_scales() -> None:
    tau = random(3, 20, 14)
    ours = merged("wudi", tau, solver="exact")
    rows, columns = orthonormal(20, 20), orthonormal(14, 14, seed=1)
    assert close(merged("wudi", rows @ tau @ columns, solver="exact"), rows @ ours @ columns, 1e-4)
    assert close(merged("wudi", 1e-5 * tau, solver="exact"), 1e-5 * ours, 1e-4)
    assert close(merged("wudi", 1e12 * tau, solver="exact"), 1e12 * ours, 1e-4)


@SOLVERS
def test_order_does_not_matter(solver: str) -> None:
    tau = 1e-3 * random(4, 20, 16)
    ours = merged("wudi", tau, solver=solver)
    assert close(merged("wudi", tau[[2, 0, 3, 1]], solver=solver), ours)


@SOLVERS
def test_threads_do_not_matter(solver: str) -> None:
    tau = random(2, 300, 50)
    ours = merged("wudi", tau, solver=solver, iterations=20)
    torch.set_num_threads(3)
    try:
        assert torch.equal(merged("wudi", tau, solver=solver, iterations=20), ours)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(4, 60), (40, 12), (12, 40)])
def test_sizes_of_blocks_do_not_matter(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tau = 1e-3 * random(3, *shape)
    ours = merged("wudi", tau)
    monkeypatch.setattr(wudi, "_ROWS", 3)
    assert close(merged("wudi", tau), ours)


def test_few_wide_task_vectors_are_worked_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A would be larger than they are; both ways give the same."""
    tau = 1e-3 * random(2, 4, 60)
    ours = merged("wudi", tau)
    monkeypatch.setattr(wudi, "_is_wide", lambda _shape, _tasks: False)
    assert close(merged("wudi", tau), ours)


def test_on_a_gpu_no_rows_are_no_blocks() -> None:
    """A is left out where task vectors are wide; the device stands for any that is no CPU."""
    assert wudi._blocks(torch.empty(0, 5, device="meta")) == []
    assert wudi._blocks(torch.empty(300, 5, device="meta")) == [slice(0, 300)]
