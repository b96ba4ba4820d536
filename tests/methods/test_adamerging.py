"""AdaMerging and AdaMerging++ on a small network."""

import pytest
import torch

from apgd import InputError, TaskVectors, merge
from apgd.evidence import NO_EVIDENCE, Evidence, Need
from apgd.methods import methods
from apgd.methods._ties import agreeing, election, trimmed
from tests.classifiers import experts, unlabelled
from tests.conftest import State

NAMES = [
    f"adamerging{plus}_{wise}_wise" for plus in ("", "_plusplus") for wise in ("task", "layer")
]
MATRICES = ("first.weight", "second.weight")


def evidence(base: State, states: dict[str, State]) -> Evidence:
    return Evidence(inputs=unlabelled(base, list(states)))


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    def test_needs_inputs(self, name: str) -> None:
        base, states = experts()
        assert methods[name].needs is Need.INPUTS
        with pytest.raises(InputError, match=f"method {name} needs unlabelled inputs"):
            merge(name, base, states, evidence=NO_EVIDENCE)

    def test_defaults_are_the_papers(self, name: str) -> None:
        values = methods[name].parse({}).as_dict()
        trimming = {"keep_ratio": 0.2} if "plusplus" in name else {}
        assert values == {
            "coefficient": 0.3, "learning_rate": 1e-3, "iterations": 500, "batch_size": 16,
            "seed": 0, **trimming,
        }  # fmt: skip
        searched = [d.name for d in methods[name].params.declared() if d.search is not None]
        assert searched == ["coefficient", "learning_rate", *trimming]

    def test_the_summary_tells_the_coefficients(self, name: str) -> None:
        base, states = experts()
        known = evidence(base, states)
        merged = merge(name, base, states, evidence=known, iterations=3, learning_rate=0.02)
        told = [layer.details["coefficients"] for layer in merged.summary.layers]
        assert [layer.name for layer in merged.summary.layers] == list(MATRICES)
        assert all(value != 0.3 for layer in told for value in layer)
        assert (told[0] == told[1]) == ("task_wise" in name)
        unmerged = [n for n in base if n not in MATRICES]
        assert all(torch.equal(merged[n], base[n]) for n in unmerged)

    def test_the_result_does_not_depend_on_what_is_kept(self, name: str) -> None:
        base, states = experts()
        method = methods[name]
        params = method.parse({"iterations": 3, "learning_rate": 0.02})
        first, second = (
            method.merge(TaskVectors(base, states, keep=keep), params, evidence(base, states))
            for keep in (False, True)
        )
        assert all(torch.equal(first[n], second[n]) for n in MATRICES)

    def test_the_order_of_experts_does_not_matter(self, name: str) -> None:
        base, states = experts()
        settings = {"iterations": 3, "learning_rate": 0.02}
        merged = merge(name, base, states, evidence=evidence(base, states), **settings)
        turned = dict(reversed(states.items()))
        again = merge(name, base, turned, evidence=evidence(base, turned), **settings)
        for matrix in MATRICES:
            torch.testing.assert_close(merged[matrix], again[matrix], rtol=1e-4, atol=1e-6)

    def test_experts_equal_to_the_base_change_nothing(self, name: str) -> None:
        base, _ = experts()
        same = {"expert0": base, "expert1": base}
        merged = merge(name, base, same, evidence=evidence(base, same), iterations=3)
        assert all(torch.equal(merged[n], base[n]) for n in base)

    def test_one_expert_merges(self, name: str) -> None:
        base, states = experts(1)
        merged = merge(name, base, states, evidence=evidence(base, states), iterations=3)
        assert all(torch.isfinite(t).all() for t in merged.values())


@pytest.mark.parametrize("name", ["adamerging_task_wise", "adamerging_layer_wise"])
def test_without_steps_it_is_task_arithmetic(name: str) -> None:
    base, states = experts()
    merged = merge(
        name, base, states, evidence=evidence(base, states), iterations=0, coefficient=0.4
    )
    expected = merge("task_arithmetic", base, states, coefficient=0.4)
    for matrix in MATRICES:
        torch.testing.assert_close(merged[matrix], expected[matrix], rtol=1e-6, atol=1e-6)


def test_identical_experts_have_identical_gradients() -> None:
    base, states = experts(2)
    same = {"expert0": states["expert0"], "expert1": states["expert0"]}
    merged = merge(
        "adamerging_layer_wise", base, same, evidence=evidence(base, same), iterations=4,
        learning_rate=0.05,
    )  # fmt: skip
    for layer in merged.summary.layers:
        first, second = layer.details["coefficients"]
        assert first == second != 0.3


@pytest.mark.parametrize("wise", ["task", "layer"])
def test_plus_plus_without_steps_is_the_sum_of_what_ties_keeps(wise: str) -> None:
    base, states = experts()
    merged = merge(
        f"adamerging_plusplus_{wise}_wise", base, states, evidence=evidence(base, states),
        iterations=0, coefficient=0.5, keep_ratio=0.4,
    )  # fmt: skip
    vectors = TaskVectors(base, states)
    found = election(vectors, 0.4)
    for matrix in MATRICES:
        chosen = agreeing(trimmed(vectors[matrix], found.thresholds), found.majority)
        torch.testing.assert_close(merged[matrix], base[matrix] + 0.5 * chosen.sum(dim=0))
        # The mean of the entries that are there is what Ties makes of it.
        mean = chosen.sum(dim=0) / (chosen != 0).sum(dim=0).clamp(min=1)
        ties = merge("ties", base, states, coefficient=1.0, keep_ratio=0.4, aggregate="mean")
        torch.testing.assert_close(ties[matrix], base[matrix] + mean)


def test_agreeing_by_hand() -> None:
    tau = torch.tensor([[[4.0, -3.0, 1.0, 0.0]], [[-1.0, -5.0, -1.0, 0.0]], [[2.0, 1.0, 0.0, 0.0]]])
    found = agreeing(tau, torch.tensor(-1.0))
    expected = torch.tensor([[4.0, -3.0, 0, 0], [0, -5.0, -1.0, 0], [2.0, 0, 0, 0]])
    assert torch.equal(found[:, 0], expected)


def test_opposite_experts_agree_on_nothing() -> None:
    _, states = experts(1)
    change = states["expert0"]
    base = {name: torch.zeros_like(tensor) for name, tensor in change.items()}
    opposite = {"up": change, "down": {name: -tensor for name, tensor in change.items()}}
    merged = merge(
        "adamerging_plusplus_layer_wise", base, opposite, evidence=evidence(base, opposite),
        iterations=2, coefficient=1.0, keep_ratio=1.0,
    )  # fmt: skip
    # Every sign is an exact tie, and no sign has the majority.
    assert all(torch.equal(merged[matrix], base[matrix]) for matrix in MATRICES)
