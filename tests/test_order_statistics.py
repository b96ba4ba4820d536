from typing import Any

import pytest
import torch
from torch import Tensor

from apgd import TaskVectors
from apgd.order_statistics import of_one, order_statistics
from tests.conftest import same_bits

SHAPES = {"a": (7, 5), "b": (1, 9), "c": (30, 11)}


def signed(tau: Tensor) -> Any:
    return lambda i, rows: tau[i, rows]


def flat(tau: dict[str, Tensor]) -> Tensor:
    return torch.cat([matrix.flatten(1) for matrix in tau.values()], dim=1)


def vectors_of(tau: dict[str, Tensor]) -> TaskVectors:
    base = {name: torch.zeros(matrix.shape[1:]) for name, matrix in tau.items()}
    count = len(next(iter(tau.values())))
    return TaskVectors(base, {f"e{i}": {n: t[i] for n, t in tau.items()} for i in range(count)})


def random(seed: int) -> dict[str, Tensor]:
    """Numbers of all sizes and signs, some of them equal, some 0."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in SHAPES.items():
        numbers = torch.randn(3, *shape, generator=generator)
        numbers *= 10.0 ** torch.randint(-44, 38, numbers.shape, generator=generator)
        rounded = torch.randint(-3, 4, numbers.shape, generator=generator).float()
        made[name] = torch.where(torch.rand(numbers.shape, generator=generator) < 0.5, numbers,
                                 rounded)  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scores", [signed, None])
def test_every_rank_is_that_of_a_sort(seed: int, scores: Any) -> None:
    tau = random(seed)
    everything = flat(tau) if scores else flat(tau).abs()
    some = [1, 2, 3, 100, 180, 187, 200, 250, 373, 374]
    ranks = torch.tensor([some] * 3)
    chosen = {"scores": scores} if scores else {}
    found = order_statistics(vectors_of(tau).total_of, ranks, **chosen)
    assert torch.equal(found, everything.sort(dim=1).values[:, ranks[0] - 1])


def test_experts_can_have_different_ranks() -> None:
    tau = random(0)["c"]
    ranks = torch.tensor([[1, 330], [7, 8], [100, 100]])
    expected = tau.flatten(1).sort(dim=1).values.gather(1, ranks - 1)
    assert torch.equal(order_statistics(of_one(tau), ranks, signed), expected)


def test_the_ends_of_float32() -> None:
    limits = torch.finfo(torch.float32)
    numbers = [-float("inf"), limits.min, -1.0, -limits.tiny, -1e-45, 0.0,
               1e-45, limits.tiny, 1.0, limits.max, float("inf")]  # fmt: skip
    tau = torch.tensor([numbers[::-1]]).view(1, 1, -1)
    ranks = torch.arange(1, len(numbers) + 1).unsqueeze(0)
    assert same_bits(order_statistics(of_one(tau), ranks, signed), torch.tensor([numbers]))


def test_more_entries_than_a_strip_has() -> None:
    tau = torch.randn(2, 700, 800, generator=torch.Generator().manual_seed(0))
    ranks = torch.tensor([[1, 280_000, 560_000]] * 2)
    expected = tau.flatten(1).sort(dim=1).values.gather(1, ranks - 1)
    assert torch.equal(order_statistics(of_one(tau), ranks, signed), expected)
    torch.set_num_threads(3)
    assert torch.equal(order_statistics(of_one(tau), ranks, signed), expected)


@pytest.mark.parametrize("keep", [0.001, 0.05, 0.2, 0.5, 0.99, 1.0])
def test_thresholds_are_the_kth_values_of_the_whole_model(keep: float) -> None:
    tau = random(1)
    everything = flat(tau).abs()
    count = everything.shape[1]
    rank = max(1, count - int(keep * count))
    assert same_bits(
        vectors_of(tau).magnitude_thresholds(keep), everything.kthvalue(rank, dim=1).values
    )
