"""Iso-C and Iso-CTS against full decompositions, and in closed form."""

import pytest
import torch
from torch import Tensor

from apgd.methods.isotropic import subspace_sizes
from tests.methods.matrices import close, combined, merged, orthonormal, random

SHAPES = [(24, 24), (16, 40), (40, 16), (64, 9)]
BOTH = pytest.mark.parametrize("name", ["iso_c", "iso_cts"])


def polar(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def naive_c(tau: Tensor) -> Tensor:
    total = tau.double().sum(dim=0)
    return (torch.linalg.svdvals(total).mean() * polar(total)).float()


def naive_cts(tau: Tensor, share: float) -> Tensor:
    """By full decompositions of everything, in float64."""
    tau = tau.double()
    rank, count = min(tau.shape[1:]), len(tau)
    per_task = round((rank - int(rank * share)) / count)
    common = rank - per_task * count
    u, s, vh = torch.linalg.svd(tau.sum(dim=0), full_matrices=False)
    u = u[:, :common]
    parts = [(u, s[:common], vh[:common])]
    for task in tau:
        own = torch.linalg.svd(task - u @ u.T @ task, full_matrices=False)
        parts.append((own.U[:, :per_task], own.S[:per_task], own.Vh[:per_task]))
    left = polar(torch.cat([p[0] for p in parts], dim=1))
    right = polar(torch.cat([p[2] for p in parts]))
    return (torch.cat([p[1] for p in parts]).mean() * left @ right).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_iso_c_is_what_a_full_decomposition_gives(shape: tuple[int, int], count: int) -> None:
    tau = random(count, *shape)
    assert close(merged("iso_c", tau), naive_c(tau), 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_is_what_full_decompositions_give(
    shape: tuple[int, int], count: int, share: float
) -> None:
    tau = random(count, *shape)
    if share == 0.0 and min(shape) % count:
        return  # more directions than dimensions, in the naive one
    assert close(merged("iso_cts", tau, common_share=share), naive_cts(tau, share), 1e-3)


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_a_scaled_orthogonal_matrix_comes_back(name: str, shape: tuple[int, int]) -> None:
    rows, columns = shape
    matrix = orthonormal(max(shape), min(shape))
    tau = 0.3 * (matrix if rows > columns else matrix.T).unsqueeze(0)
    assert close(merged(name, tau), tau[0])
    if name == "iso_c":
        assert close(merged(name, tau.repeat(4, 1, 1) / 4), tau[0])


@BOTH
def test_all_singular_values_become_their_mean(name: str) -> None:
    tau = random(2, 30, 12)
    total = torch.linalg.svdvals(tau.sum(dim=0))
    found = combined(name, tau, coefficient=2.0)
    values = torch.linalg.svdvals(found.delta)
    value = found.details["singular_value"]
    torch.testing.assert_close(values, torch.full_like(values, 2 * value), rtol=1e-4, atol=0)
    if name == "iso_c":
        assert value == pytest.approx(float(total.mean()), rel=1e-5)


@BOTH
@pytest.mark.parametrize("count", [1, 3])
def test_directions_that_no_task_has_are_left_out(name: str, count: int) -> None:
    """Of rank 4 together, in a matrix of rank 20, as with adapters of low rank."""
    left, right = orthonormal(30, 4), orthonormal(20, 4, seed=1)
    core = random(count, 4, 4)
    ours = merged(name, left @ core @ right.T)  # all of it is common: 4 of 17 directions
    assert close(ours, left @ naive_c(core) @ right.T, 1e-4)
    values = torch.linalg.svdvals(ours)
    assert values[4] < 1e-5 * values[0]


def test_what_rounding_leaves_outside_the_common_subspace_is_no_direction() -> None:
    tau = (orthonormal(40, 5) @ random(1, 5, 40)[0]).unsqueeze(0).repeat(2, 1, 1)
    found = combined("iso_cts", tau)
    assert found.details["common_directions"] == 5
    assert found.details["task_directions"] == 0
    assert close(found.delta, merged("iso_c", tau), 1e-4)


@BOTH
def test_equal_task_vectors_are_one_of_larger_scale(name: str) -> None:
    tau = random(1, 18, 25)
    ours = merged(name, tau.repeat(3, 1, 1), **({"common_share": 1.0} if name == "iso_cts" else {}))
    assert close(ours, 3 * merged("iso_c", tau), 1e-4)


def test_without_room_for_tasks_both_are_the_same() -> None:
    tau = random(3, 18, 25)
    assert close(merged("iso_cts", tau, common_share=1.0), merged("iso_c", tau), 1e-4)


@BOTH
def test_opposite_task_vectors_cancel_in_the_common_subspace(name: str) -> None:
    tau = random(1, 20, 10)
    found = combined(name, torch.cat([tau, -tau]))
    assert found.delta.norm() < 1e-4 * tau.norm()
    if name == "iso_c":
        assert not found.delta.any()


@BOTH
def test_edges_stay_finite(name: str) -> None:
    assert torch.equal(merged(name, torch.zeros(3, 6, 4)), torch.zeros(6, 4))
    for shape in ((1, 5), (7, 1), (1, 1), (2, 2)):
        for count in (1, 2, 5):
            tau = random(count, *shape)
            assert torch.isfinite(merged(name, tau)).all()
            assert torch.isfinite(merged(name, torch.cat([tau, 0 * tau]))).all()
    row = random(3, 1, 5)
    assert close(merged(name, row), row.sum(dim=0))


@BOTH
def test_they_turn_with_rows_and_columns(name: str) -> None:
    tau = random(3, 20, 30)
    rows, columns = orthonormal(20, 20), orthonormal(30, 30, seed=1)
    ours = merged(name, rows @ tau @ columns)
    assert close(ours, rows @ merged(name, tau) @ columns, 1e-4)


@BOTH
def test_order_does_not_matter_and_scale_goes_through(name: str) -> None:
    tau = random(4, 20, 16)
    ours = merged(name, tau)
    assert close(merged(name, tau[[2, 0, 3, 1]]), ours, 1e-4)
    assert close(merged(name, 1e-6 * tau), 1e-6 * ours, 1e-4)


def test_sizes_of_the_subspaces() -> None:
    assert subspace_sizes(768, 8, 0.8) == (616, 19)
    assert subspace_sizes(768, 20, 0.8) == (608, 8)
    assert subspace_sizes(10, 3, 1.0) == (10, 0)
    assert subspace_sizes(2, 3, 0.0) == (2, 0)  # three would not fit
    assert subspace_sizes(1, 1, 0.8) == (0, 1)
    for rank in range(1, 40):
        for experts in range(1, 12):
            common, per_task = subspace_sizes(rank, experts, 0.8)
            assert common >= 0
            assert common + per_task * experts == rank
