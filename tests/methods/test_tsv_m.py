"""TSV-M against a full decomposition, and in closed form."""

import pytest
import torch
from torch import Tensor

from apgd import TaskVectors
from apgd.methods import methods
from apgd.methods.tsv_m import TsvMParams, triplets_kept
from tests.methods.matrices import close, combined, merged, orthonormal, random

SHAPES = [(24, 24), (16, 40), (40, 16), (64, 9)]


def naive(tau: Tensor, kept: int) -> Tensor:
    """By full decompositions of everything, in float64."""

    def orthogonal(matrix: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u @ vh

    parts = [torch.linalg.svd(task.double(), full_matrices=False) for task in tau]
    left = orthogonal(torch.cat([u[:, :kept] for u, _, _ in parts], dim=1))
    right = orthogonal(torch.cat([vh[:kept] for _, _, vh in parts]))
    values = torch.cat([s[:kept] for _, s, _ in parts])
    return (left @ torch.diag(values) @ right).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_it_is_what_full_decompositions_give(shape: tuple[int, int], count: int) -> None:
    tau = random(count, *shape)
    assert close(merged("tsv_m", tau), naive(tau, min(shape) // count), 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep_ratio", [0.15, 0.6, 1.0])
def test_more_directions_than_there_are_dimensions(
    shape: tuple[int, int], keep_ratio: float
) -> None:
    tau = random(3, *shape)
    kept = triplets_kept(min(shape), 3, keep_ratio)
    assert close(merged("tsv_m", tau, keep_ratio=keep_ratio), naive(tau, kept), 1e-4)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5), (7, 1)])
def test_one_task_vector_is_kept(shape: tuple[int, int]) -> None:
    tau = random(1, *shape)
    assert close(merged("tsv_m", tau), tau[0])
    assert close(merged("tsv_m", tau, keep_ratio=1.0), tau[0])
    assert close(merged("tsv_m", tau, coefficient=0.25), 0.25 * tau[0])


def test_task_vectors_that_do_not_meet_are_added() -> None:
    """Ranks 2 and 3, in rows and columns orthogonal to each other's."""
    left, right = orthonormal(12, 5), orthonormal(10, 5, seed=1)
    tau = torch.stack(
        [
            (left[:, :2] * torch.tensor([3.0, 1.0])) @ right[:, :2].T,
            (left[:, 2:] * torch.tensor([2.0, 1.5, 0.5])) @ right[:, 2:].T,
        ]
    )
    assert close(merged("tsv_m", tau), tau.sum(dim=0))


def test_equal_task_vectors_count_once() -> None:
    """Their directions are one subspace, to which orthogonalisation brings all of them."""
    tau = random(1, 20, 14)
    twice = merged("tsv_m", tau.repeat(2, 1, 1))
    u, s, vh = torch.linalg.svd(tau[0])
    expected = (u[:, :7] * s[:7]) @ vh[:7]
    assert close(twice, expected)


def test_opposite_task_vectors_cancel() -> None:
    tau = random(1, 20, 14)
    cancelled = merged("tsv_m", torch.cat([tau, -tau]))
    assert cancelled.norm() < 1e-5 * tau.norm()


def test_zero_task_vectors_add_nothing() -> None:
    tau = random(2, 12, 15)
    padded = torch.cat([tau, torch.zeros(1, 12, 15)])
    ours = merged("tsv_m", padded, keep_ratio=0.5)
    assert close(ours, merged("tsv_m", tau, keep_ratio=0.5))
    assert torch.equal(merged("tsv_m", torch.zeros(3, 6, 4)), torch.zeros(6, 4))


@pytest.mark.parametrize("count", [2, 5])
def test_it_turns_with_rows_and_columns(count: int) -> None:
    tau = random(count, 20, 30)
    rows, columns = orthonormal(20, 20), orthonormal(30, 30, seed=1)
    ours = merged("tsv_m", rows @ tau @ columns)
    assert close(ours, rows @ merged("tsv_m", tau) @ columns, 1e-4)


def test_order_does_not_matter_and_scale_goes_through() -> None:
    tau = random(4, 20, 16)
    ours = merged("tsv_m", tau)
    assert close(merged("tsv_m", tau[[2, 0, 3, 1]]), ours)
    assert close(merged("tsv_m", 1e-6 * tau), 1e-6 * ours)
    assert close(merged("tsv_m", tau.transpose(1, 2)), ours.T)


def test_how_many_directions_are_kept() -> None:
    assert [triplets_kept(768, n, None) for n in (1, 8, 20, 769)] == [768, 96, 38, 0]
    assert triplets_kept(100, 2, 0.29) == 29
    assert all(triplets_kept(r, n, 1 / n) == r // n for r in range(1, 300) for n in range(1, 60))
    assert TsvMParams().resolved(768, 8).keep_ratio == 0.125
    assert TsvMParams(keep_ratio=0.5).resolved(768, 8).keep_ratio == 0.5
    few = combined("tsv_m", random(3, 1, 7))
    assert few.details == {"directions_per_task": 0}
    assert not few.delta.any()


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts"])
def test_threads_do_not_matter(name: str) -> None:
    tau = random(3, 70, 50)
    ours = merged(name, tau)
    torch.set_num_threads(3)
    try:
        assert torch.equal(merged(name, tau), ours)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_inputs_stay_and_memory_and_work_are_declared(name: str) -> None:
    tau = random(3, 12, 9)
    before = tau.clone()
    merged(name, tau)
    assert torch.equal(tau, before)
    method = methods[name]
    assert method.holds((12, 9), 3) >= 4 * 12 * 9 * 4
    cost = method.cost((12, 9), 3, method.parse({}))
    assert cost.flops > 0
    base = {"w": torch.zeros(12, 9)}
    vectors = TaskVectors(base, {f"e{i}": {"w": t} for i, t in enumerate(tau)})
    assert close(method.merge(vectors, method.parse({}))["w"], merged(name, tau))
