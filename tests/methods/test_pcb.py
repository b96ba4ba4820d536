from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from apgd import TaskVectors, merge
from apgd.methods import methods
from tests.conftest import SHAPES, State

Make = Callable[..., tuple[State, dict[str, State]]]


def flat(vectors: TaskVectors) -> Tensor:  # (N, d)
    return torch.cat([vectors[name].flatten(1) for name in vectors.names], dim=1)


def delta_of(merged: State, base: State) -> Tensor:  # (d,)
    return torch.cat([(merged[n] - base[n]).flatten() for n in sorted(SHAPES)])


def whole_model(tau: Tensor, keep_ratio: float, outliers: float = 1e-4) -> Tensor:
    """The authors' rule on one vector per expert, in float64 and by sorting."""
    tau = tau.double()
    experts, count = tau.shape

    def clamped(values: Tensor, low: float, high: float) -> Tensor:
        order = values.sort(dim=1).values
        most = order[:, max(0, int(count * (1 - high) - 1))].unsqueeze(1)
        return values.clamp(order[:, int(count * low)].unsqueeze(1), most)

    def relative(values: Tensor) -> Tensor:
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        return (values - low) / (high - low)

    magnitudes = clamped(tau.abs(), outliers, outliers)
    intra = (experts * relative(magnitudes).square()).exp()
    inter = (tau * tau.sum(dim=0)).tanh()
    weights = relative(clamped(intra * inter, 1 - keep_ratio, 0))
    merged = (weights * magnitudes * tau.sign()).sum(dim=0)
    return merged / weights.sum(dim=0).clamp(min=1e-12)


@pytest.mark.parametrize("experts", [1, 2, 3, 8])
@pytest.mark.parametrize("keep", [0.02, 0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_as_on_the_whole_model(experts: int, keep: float, size: float, model: Make) -> None:
    base, tuned = model(experts, size=size)
    base = {n: torch.zeros_like(t) for n, t in base.items()}
    expected = 1.2 * whole_model(flat(TaskVectors(base, tuned)), keep)
    merged = merge("pcb", base, tuned, keep_ratio=keep)
    torch.testing.assert_close(delta_of(merged, base).double(), expected, rtol=2e-5, atol=1e-7)


def test_thresholds_rank_a_large_model_exactly() -> None:
    """With 60,000 entries six are outliers on either side, and matrices take several strips."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 100), "b": (100, 300)}
    base = {n: torch.zeros(s) for n, s in shapes.items()}
    tuned = {
        f"e{i}": {n: torch.randn(s, generator=generator) ** 3 for n, s in shapes.items()}
        for i in range(3)
    }
    vectors = TaskVectors(base, tuned)
    ours = methods["pcb"].merge(vectors, methods["pcb"].parse({"coefficient": 1.0}))
    found = torch.cat([ours[n].flatten() for n in vectors.names])
    expected = whole_model(flat(vectors), 0.05)
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_expert_keeps_its_largest_entries_as_they_are(model: Make) -> None:
    base, experts = model(1)
    base = {n: torch.zeros_like(t) for n, t in base.items()}
    merged = merge("pcb", base, experts, coefficient=0.5, keep_ratio=0.1)
    tau = flat(TaskVectors(base, experts))[0]
    sizes = tau.abs().sort(descending=True).values
    # 221 entries: ranks from 199 on, of which the lowest has weight 0; the largest is an outlier.
    expected = 0.5 * tau.sign() * tau.abs().clamp(max=sizes[1]) * (tau.abs() > sizes[22])
    torch.testing.assert_close(delta_of(merged, base), expected)


def test_identical_experts_merge_like_one(model: Make) -> None:
    base, experts = model(1)
    alone = merge("pcb", base, experts)
    together = merge("pcb", base, {f"e{i}": experts["expert0"] for i in range(4)})
    for name in base:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-6)


def test_opposite_experts_cancel(model: Make) -> None:
    base, experts = model(1)
    opposite = {n: 2 * base[n] - t for n, t in experts["expert0"].items()}
    zero = {n: torch.zeros_like(t) for n, t in base.items()}
    tau = {n: t - base[n] for n, t in experts["expert0"].items()}
    merged = merge("pcb", zero, {"a": tau, "b": {n: -t for n, t in tau.items()}})
    assert all(not merged[n].any() for n in SHAPES)
    assert all(
        torch.isfinite(merge("pcb", base, {**experts, "b": opposite})[n]).all() for n in base
    )


def test_experts_that_change_different_entries_do_not_compete() -> None:
    generator = torch.Generator().manual_seed(0)
    tau = torch.randn(4, 50, generator=generator)
    first = torch.where(torch.arange(50) < 25, tau, 0.0)
    merged = merge(
        "pcb", {"w": torch.zeros(4, 50)}, {"a": {"w": first}, "b": {"w": tau - first}},
        coefficient=1.0, keep_ratio=0.2,
    )["w"]  # fmt: skip
    kept = merged != 0
    assert 70 <= kept.sum() <= 80
    limits = torch.minimum(first.abs().flatten().sort().values[-2],
                           (tau - first).abs().flatten().sort().values[-2])  # fmt: skip
    ordinary = kept & (tau.abs() < limits)
    torch.testing.assert_close(merged[ordinary], tau[ordinary])


def test_an_expert_whose_entries_are_of_one_size_comes_out_whole() -> None:
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    merged = merge("pcb", {"w": torch.zeros(2, 3)}, {"a": {"w": 0.5 * signs}}, coefficient=1.0)
    torch.testing.assert_close(merged["w"], 0.5 * signs)


def test_a_hundred_experts_do_not_overflow(model: Make) -> None:
    base, tuned = model(100)
    base = {n: torch.zeros_like(t) for n, t in base.items()}
    vectors = TaskVectors(base, tuned, select=lambda n, _t: n == "tall")
    params = methods["pcb"].parse({"keep_ratio": 0.2, "coefficient": 1.0})
    found = methods["pcb"].merge(vectors, params)["tall"].flatten()
    expected = whole_model(flat(vectors), 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
