"""DOGE TA against FusionBench 0.2.33, whose author is one of the paper's, on the same input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from apgd import merge
from apgd.checkpoints import load_weights, read_metadata
from tests.golden.make_fusion_bench import GOLDEN, cases, models

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, State]:
    states: dict[str, State] = {}
    for key, tensor in load_weights(GOLDEN, "the golden file").items():
        model, _, name = key.partition("/")
        states.setdefault(model, {})[name] = tensor
    return states


def selected(name: str, _tensor: Tensor) -> bool:
    return "encoder" in name and "weight" in name and "layer_norm" not in name


@pytest.mark.parametrize("case", cases(), ids=lambda case: str(case["name"]))
def test_equals_fusion_bench(golden: dict[str, State], case: dict[str, Any]) -> None:
    base = golden["base"]
    experts = {name: golden[name] for name in case["experts"]}
    # FusionBench: int(r / N) columns of every task vector, int(r / subspace) of all of them.
    for name in filter(lambda n: selected(n, base[n]), base):
        rank = min(base[name].shape)
        merged = merge(
            "doge_ta",
            base,
            experts,
            select=selected,
            eta=case["eta"],
            keep_ratio=case["keep_ratio"],
            basis_size=rank // len(experts),
            shared_basis_size=rank // case["subspace"],
        )
        ours = merged[name].double() - base[name].double()
        theirs = golden["merged"][f"{case['name']}/{name}"].double()
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
        assert merged.summary.not_merged == ("encoder.0.layer_norm.weight", "head.weight")


def test_the_golden_file_is_of_these_cases_and_models(golden: dict[str, State]) -> None:
    """What is compared is what the script makes today."""
    metadata = read_metadata(GOLDEN)
    assert metadata["cases"] == cases()
    assert metadata["versions"]["fusion_bench"] == "0.2.33"  # type: ignore[index]
    for key, tensor in models().items():
        model, _, name = key.partition("/")
        torch.testing.assert_close(golden[model][name], tensor)
