"""Merge methods against independent implementations, on the same input; see make_methods.py."""

import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd.checkpoints import load_weights, read_metadata
from apgd.data import ImageExamples
from apgd.evidence import NO_EVIDENCE, Evidence, Need
from apgd.heads import Head
from apgd.merging import Merged, merge
from apgd.methods import methods
from apgd.task_vectors import TaskVectors
from apgd.unlabelled import UnlabelledInputs
from tests.golden.make_fusion_bench import GOLDEN
from tests.golden.make_methods import (
    BATCH,
    DARE_LAW,
    MATRICES,
    METHODS_GOLDEN,
    Case,
    cases,
    evidence,
)
from tests.golden.tiny_encoder import TinyEncoder, features

State = dict[str, Tensor]

LEARNED_ALONE = [c.name for c in cases() if re.match("adamerging_(task|layer)_wise", c.method)]
"""Of these the golden file has the coefficients and not the merge."""
STATISTICS = {Need.FISHER: "fisher", Need.GRAM: "gram"}


@pytest.fixture(scope="module")
def golden() -> State:
    return load_weights(METHODS_GOLDEN, "the golden file")


@pytest.fixture(scope="module")
def models() -> dict[str, State]:
    states: dict[str, State] = {}
    for key, tensor in load_weights(GOLDEN, "the golden file").items():
        model, _, name = key.partition("/")
        if name in MATRICES:
            states.setdefault(model, {})[name] = tensor
    return states


class LinearHead(Head):
    """Logits that are linear in the encoder's output."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def to(self, device: str | torch.device) -> Self:
        return self

    def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        raise AssertionError("labels were asked for")

    def ensemble_answers(self, voices: Any, examples: Any) -> np.ndarray:
        raise AssertionError("labels were asked for")

    def log_likelihoods(self, model: nn.Module, examples: Any, row: int) -> Tensor:
        raise AssertionError("labels were asked for")

    def answers(self, model: nn.Module, examples: Any) -> np.ndarray:
        raise AssertionError("labels were asked for")

    def entropy(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(examples.images[rows])
        logarithms = (model(features(pixels)) @ self.weight.T).log_softmax(dim=1)
        return -(logarithms.exp() * logarithms).sum(dim=1).mean()


def known(golden: State, method: str, base: State, experts: tuple[str, ...]) -> Evidence:
    needs = methods[method].needs
    if needs is Need.INPUTS:
        images = {name: golden[f"inputs/{name}"].numpy() for name in experts}
        inputs = {
            name: ImageExamples(found, np.zeros(len(found), np.int64)).unlabelled()
            for name, found in images.items()
        }
        heads = {name: LinearHead(golden[f"head/{name}"]) for name in experts}
        return Evidence(
            inputs=UnlabelledInputs(model=TinyEncoder(base), heads=heads, inputs=inputs)
        )
    if needs is Need.NOTHING:
        return NO_EVIDENCE
    kind = STATISTICS[needs]
    return Evidence(
        statistics={
            expert: {name: golden[f"{kind}/{expert}/{name}"] for name in base} for expert in experts
        }
    )


def merged_by_us(golden: State, models: Mapping[str, State], case: Case) -> Merged:
    experts = {name: models[name] for name in case.experts}
    return merge(
        case.method,
        models["base"],
        experts,
        evidence=known(golden, case.method, models["base"], case.experts),
        **case.params,
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm())


def coefficients(merged: Merged) -> Tensor:  # (N, matrices), sorted by their names
    return torch.tensor([layer.details["coefficients"] for layer in merged.summary.layers]).T


@pytest.mark.parametrize(
    "case", [c for c in cases() if c.name not in LEARNED_ALONE], ids=lambda case: str(case.name)
)
def test_equals_the_independent_implementation(
    golden: State, models: dict[str, State], case: Case
) -> None:
    merged = merged_by_us(golden, models, case)
    for name in MATRICES:
        theirs = golden[f"merged/{case.name}/{name}"]
        assert relative(merged[name] - models["base"][name], theirs) <= case.tolerance


@pytest.mark.parametrize(
    "case", [c for c in cases() if "steps" in c.settings], ids=lambda case: str(case.name)
)
def test_learned_coefficients_are_theirs(
    golden: State, models: dict[str, State], case: Case
) -> None:
    """They start at 0.3: what is compared is how far they went."""
    theirs = golden[f"merged/{case.name}/coefficients"].reshape(len(case.experts), -1)
    # Theirs are in the order of the model's parameters; the wrapper of DOGE AM sorts them.
    order = sorted(MATRICES) if case.method == "doge_am" else list(MATRICES)
    if theirs.shape[1] > 1:
        theirs = theirs[:, [order.index(name) for name in sorted(MATRICES)]]
    ours = coefficients(merged_by_us(golden, models, case))
    assert relative(ours - 0.3, (theirs - 0.3).expand_as(ours)) <= 1e-3


def test_doge_am_modifies_task_vectors_as_they_do(golden: State, models: dict[str, State]) -> None:
    """M_i ⊙ (τ_i + Δ_i), before coefficients are learned."""
    (case,) = (case for case in cases() if case.method == "doge_am")
    experts = {name: models[name] for name in case.experts}
    method = methods[case.method]
    vectors = method.transform(TaskVectors(models["base"], experts), method.parse(case.params))
    for name in MATRICES:
        found = vectors[name]
        for i, expert in enumerate(case.experts):
            theirs = golden[f"merged/{case.name}/tau/{expert}/{name}"]
            assert relative(found[i], theirs) <= 1e-4
            assert torch.equal(found[i] == 0, theirs == 0)


def test_dare_rescales_what_it_keeps_as_they_do(golden: State, models: dict[str, State]) -> None:
    """Both keep a share of entries that chance explains, and divide them by its expectation."""
    (expert,), keep_ratio = DARE_LAW.experts, DARE_LAW.params["keep_ratio"]
    merged = merged_by_us(golden, models, DARE_LAW)
    ours, theirs, tau = (
        torch.cat([state[name].flatten() for name in MATRICES]).double()
        for state in (
            {name: merged[name] - models["base"][name] for name in MATRICES},
            {name: golden[f"merged/{DARE_LAW.name}/{name}"] for name in MATRICES},
            {name: models[expert][name] - models["base"][name] for name in MATRICES},
        )
    )
    for found in (ours, theirs):
        kept = found.abs() > tau.abs()  # up to rounding, entries are 0 or τ / keep_ratio
        spread = (keep_ratio * (1 - keep_ratio) / len(tau)) ** 0.5
        assert abs(float(kept.double().mean()) - keep_ratio) < 4 * spread
        torch.testing.assert_close(found, kept * tau / keep_ratio, rtol=0, atol=1e-7)


def test_the_golden_file_is_of_these_cases_and_this_evidence(golden: State) -> None:
    """What is compared is what the script makes today."""
    metadata = read_metadata(METHODS_GOLDEN)
    assert metadata["cases"] == [case.as_json() for case in (*cases(), DARE_LAW)]
    versions = metadata["versions"]
    assert {n: versions[n] for n in ("fusion-bench", "mergekit", "peft")} == {  # type: ignore[index]
        "fusion-bench": "0.2.33",
        "mergekit": "0.1.5",
        "peft": "0.21.2",
    }
    for key, tensor in evidence().items():
        torch.testing.assert_close(golden[key], tensor)
    assert all(len(golden[key]) == BATCH for key in golden if key.startswith("inputs/"))
