from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from apgd import InputError, TaskVectors, merge
from apgd.methods import methods
from tests.conftest import SHAPES, State, same_bits

Make = Callable[..., tuple[State, dict[str, State]]]
BOTH = ["consensus_ta", "consensus_ties"]


def merged_of(experts: list[Tensor], name: str = "consensus_ta", **params: float) -> Tensor:
    base = {"w": torch.zeros_like(experts[0])}
    return merge(name, base, {f"e{i}": {"w": t} for i, t in enumerate(experts)}, **params)["w"]


def flat(vectors: TaskVectors) -> Tensor:  # (N, d)
    return torch.cat([vectors[name].flatten(1) for name in vectors.names], dim=1)


def ties_sum(tau: Tensor, keep: float) -> Tensor:
    """Ties-Merging's multi-task vector on one vector per expert, as a sum."""
    count = tau.shape[1]
    least = tau.abs().sort(dim=1).values[:, max(1, count - int(keep * count)) - 1]
    trimmed = torch.where(tau.abs() >= least.unsqueeze(1), tau, 0.0)
    signs = trimmed.sum(dim=0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    return torch.where(trimmed.sign() == signs, trimmed, 0.0).sum(dim=0)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("tall_lambda", [0.2, 0.4, 0.6, 1.5])
@pytest.mark.parametrize("agreement", [0, 1, 2, 4])
def test_as_on_the_whole_model(name: str, tall_lambda: float, agreement: int, model: Make) -> None:
    base, experts = model(4)
    base = {n: torch.zeros_like(t) for n, t in base.items()}
    tau = flat(TaskVectors(base, experts))
    multi = tau.sum(dim=0) if name == "consensus_ta" else ties_sum(tau, 0.2)
    votes = [(t.abs() >= tall_lambda * (multi - t).abs()).int() for t in tau]
    expected = 0.5 * torch.where(sum(votes) >= agreement, multi, 0.0)
    merged = merge(
        name, base, experts, coefficient=0.5, tall_lambda=tall_lambda, agreement=agreement
    )
    found = torch.cat([merged[n].flatten() for n in sorted(SHAPES)])
    torch.testing.assert_close(found, expected)


def test_by_hand() -> None:
    first = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0]])
    second = torch.tensor([[0.0, 1.0, -1.0, 0.0, -3.0]])
    third = torch.tensor([[0.0, 1.0, -1.0, 0.0, 0.5]])
    # Sums: 4, 3, 1, 0, -4.5. With λ_t = 0.4 an entry is selected where 0.4 |sum − τ| ≤ |τ|:
    # the first by one; 0.8 ≤ 1 by all; 0.8 ≤ 3, 1 and 1 by all; the last by 1 ≤ 2, 0.6 ≤ 3, not
    # by 2 ≤ 0.5.
    tau = [first, second, third]
    for agreement, kept in ((1, [4, 3, 1, 0, -4.5]), (2, [0, 3, 1, 0, -4.5]), (3, [0, 3, 1, 0, 0])):
        found = merged_of(tau, coefficient=1.0, tall_lambda=0.4, agreement=agreement)
        assert found.tolist() == [kept]
    assert torch.equal(merged_of(tau), merged_of(tau, agreement=2))  # the default


@pytest.mark.parametrize("name", BOTH)
def test_one_expert_has_to_agree_with_itself_only(name: str, model: Make) -> None:
    base, experts = model(1)
    base = {n: torch.zeros_like(t) for n, t in base.items()}
    params = {"keep_ratio": 1.0} if name == "consensus_ties" else {}
    merged = merge(name, base, experts, coefficient=0.7, **params)
    assert all(torch.equal(merged[n], 0.7 * experts["expert0"][n]) for n in SHAPES)


def test_agreement_of_none_is_task_arithmetic(model: Make) -> None:
    base, experts = model(3)
    ours = merge("consensus_ta", base, experts, agreement=0)
    theirs = merge("task_arithmetic", base, experts)
    assert all(same_bits(ours[n], theirs[n]) for n in base)


@pytest.mark.parametrize("name", BOTH)
def test_identical_experts_agree_up_to_a_lambda_of_one(name: str, model: Make) -> None:
    # |τ| ≥ λ_t |2τ − τ|: an entry that equals its bound is selected, as in the paper.
    tau = model(1)[1]["expert0"]["wide"]
    params = {"keep_ratio": 1.0} if name == "consensus_ties" else {}
    for tall_lambda, factor in ((0.5, 2.0), (1.0, 2.0), (1.01, 0.0)):
        found = merged_of([tau, tau], name, coefficient=1.0, tall_lambda=tall_lambda, **params)
        assert torch.equal(found, factor * tau)


@pytest.mark.parametrize("name", BOTH)
def test_entries_that_one_expert_alone_changes_are_selfish(name: str) -> None:
    tau = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    first = torch.where(torch.arange(8) < 4, tau, 0.0)
    params = {"keep_ratio": 1.0} if name == "consensus_ties" else {}
    pair = [first, tau - first]
    assert not merged_of(pair, name, agreement=2, **params).any()
    assert torch.equal(merged_of(pair, name, agreement=1, coefficient=1.0, **params), tau)


@pytest.mark.parametrize("name", BOTH)
def test_a_common_scale_goes_through(name: str, model: Make) -> None:
    tau = [state["wide"] for state in model(3)[1].values()]
    assert torch.equal(merged_of([4 * t for t in tau], name), 4 * merged_of(tau, name))


def test_opposite_experts_cancel(model: Make) -> None:
    tau = model(1)[1]["expert0"]["wide"]
    assert not merged_of([tau, -tau]).any()


@pytest.mark.parametrize("name", [*BOTH, "consensus_ta+apgd"])
def test_more_agreement_than_experts_is_refused(name: str, model: Make) -> None:
    base, experts = model(3)
    merge(name, base, experts, agreement=3)
    with pytest.raises(
        InputError, match="agreement must not exceed the number of experts, which is 3, but got 4"
    ):
        merge(name, base, experts, agreement=4)
    with pytest.raises(InputError, match=r"agreement must lie in \[0, N\], but got -1"):
        merge(name, base, experts, agreement=-1)


def test_agreement_follows_from_the_number_of_experts() -> None:
    params = methods["consensus_ties"].parse({})
    assert [params.resolved(4, n).as_dict()["agreement"] for n in (1, 2, 8)] == [1, 2, 2]
    given = methods["consensus_ties"].parse({"agreement": 3})
    assert given.resolved(4, 8) == given


def test_the_summary_tells_on_how_much_they_agree(model: Make) -> None:
    base, experts = model(3)
    merged = merge("consensus_ta", base, experts, coefficient=1.0)
    for layer in merged.summary.layers:
        changed = (merged[layer.name] != base[layer.name]).double().mean()
        assert layer.details["agreed"] == pytest.approx(float(changed))
