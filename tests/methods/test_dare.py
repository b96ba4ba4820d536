from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from apgd import InputError, TaskVectors, merge
from apgd.methods import methods
from apgd.methods.dare import dropped
from tests.conftest import State, same_bits

Make = Callable[..., tuple[State, dict[str, State]]]
EVERY = {
    "dare_average": "weight_averaging",
    "dare_task_arithmetic": "task_arithmetic",
    "dare_ties": "ties",
}


def zero_based(model: Make, experts: int = 3) -> tuple[State, dict[str, State]]:
    """Experts that are their own task vectors, exactly."""
    base, tuned = model(experts)
    return {n: torch.zeros_like(t) for n, t in base.items()}, tuned


@pytest.mark.parametrize("name", EVERY)
class TestEvery:
    def test_dropping_nothing_is_the_method_itself(self, name: str, model: Make) -> None:
        base, experts = model(3)
        ours = merge(name, base, experts, keep_ratio=1.0)
        plain = merge(EVERY[name], base, experts)
        assert all(same_bits(ours[n], plain[n]) for n in base)

    def test_it_is_the_method_on_what_was_not_dropped(self, name: str, model: Make) -> None:
        base, experts = zero_based(model)
        left = {
            expert: {
                n: t if n == "bias" else dropped(0.5, 7, (expert,), n, t.unsqueeze(0))[0]
                for n, t in state.items()
            }
            for expert, state in experts.items()
        }
        ours = merge(name, base, experts, keep_ratio=0.5, seed=7)
        theirs = merge(EVERY[name], base, left)
        assert all(same_bits(ours[n], theirs[n]) for n in base)

    def test_the_seed_decides(self, name: str, model: Make) -> None:
        base, experts = model(3)
        first, again, other = (
            merge(name, base, experts, keep_ratio=0.5, seed=seed) for seed in (3, 3, 4)
        )
        assert all(same_bits(first[n], again[n]) for n in base)
        assert not torch.equal(first["wide"], other["wide"])

    def test_bad_values_are_refused(self, name: str, model: Make) -> None:
        with pytest.raises(InputError, match=r"keep_ratio must lie in \(0, 1\], but got 0.0"):
            merge(name, *model(), keep_ratio=0.0)
        with pytest.raises(InputError, match=r"seed must lie in \[0, ∞\), but got -1"):
            merge(name, *model(), seed=-1)
        with pytest.raises(InputError, match="seed must be an integer, but got 0.5"):
            merge(name, *model(), seed=0.5)

    def test_the_seed_is_not_searched(self, name: str, model: Make) -> None:
        [seed] = [p for p in methods[name].params.declared() if p.name == "seed"]
        assert seed.search is None


@pytest.mark.parametrize("name", ["dare_average", "dare_task_arithmetic"])
def test_other_layers_do_not_matter(name: str, model: Make) -> None:
    base, experts = model(3)
    whole = merge(name, base, experts, keep_ratio=0.5)
    alone = merge(name, base, experts, select=lambda n, _t: n == "wide", keep_ratio=0.5)
    assert same_bits(whole["wide"], alone["wide"])


def test_the_result_is_right_on_average_over_seeds(model: Make) -> None:
    base, experts = zero_based(model, 2)
    vectors = TaskVectors(base, experts)
    method = methods["dare_task_arithmetic"]
    seeds, keep = 200, 0.3
    merged = [
        method.merge(vectors, method.parse({"keep_ratio": keep, "seed": s}))["wide"]
        for s in range(seeds)
    ]
    tau = vectors["wide"]
    expected = 0.3 * tau.sum(dim=0)
    # An entry is τ / keep with this probability, or 0: its variance is τ² (1 − keep) / keep.
    error = 0.3 * (tau.square().sum(dim=0) * (1 - keep) / keep / seeds).sqrt()
    offset = (torch.stack(merged).mean(dim=0) - expected) / error
    assert offset.abs().max() < 5
    assert 0.7 < offset.std() < 1.3


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5])
def test_what_is_kept_is_a_share_and_rescaled_by_its_inverse(keep: float) -> None:
    found = dropped(keep, 0, ("a", "b"), "w", torch.ones(2, 500, 800))
    assert found.unique().tolist() == pytest.approx([0.0, 1 / keep], rel=1e-6)
    shares = (found != 0).double().mean(dim=(1, 2))
    assert (shares - keep).abs().max() < 5 * (keep * (1 - keep) / 400_000) ** 0.5
    both = (found != 0).all(dim=0).double().mean()  # experts are independent of each other
    assert abs(float(both) - keep**2) < 5 * (keep**2 / 400_000) ** 0.5


def test_an_expert_loses_the_same_in_any_company_and_order() -> None:
    tau = torch.randn(3, 700, 800, generator=torch.Generator().manual_seed(0))
    together = dropped(0.4, 1, ("a", "b", "c"), "w", tau)
    turned = dropped(0.4, 1, ("c", "b", "a"), "w", tau.flip(0)).flip(0)
    assert same_bits(together, turned)
    assert same_bits(together[1:2], dropped(0.4, 1, ("b",), "w", tau[1:2]))
    torch.set_num_threads(3)
    assert same_bits(together, dropped(0.4, 1, ("a", "b", "c"), "w", tau))
    # In memory the rows of all experts lie together.
    strided = tau.transpose(0, 1).contiguous().transpose(0, 1)
    assert same_bits(together, dropped(0.4, 1, ("a", "b", "c"), "w", strided))


def mask(seed: int, name: str, expert: str) -> Tensor:
    return dropped(0.5, seed, (expert,), name, torch.ones(1, 4, 30))[0] > 0


def test_seed_matrix_and_expert_each_change_the_mask() -> None:
    first = mask(0, "w", "a")
    assert first.flatten().nonzero().flatten()[:10].tolist() == PINNED
    others = [mask(1, "w", "a"), mask(0, "v", "a"), mask(0, "w", "b"), mask(0, "a", "w")]
    for other in others:
        assert 0.2 < (first == other).double().mean() < 0.8


PINNED = [0, 2, 3, 5, 6, 7, 9, 12, 14, 16]
"""Where the first entries lie that are kept: the same on every machine and in every version."""
