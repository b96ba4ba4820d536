"""Adapters in training: where they are put, what learns, and that nothing changes at first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import InputError
from apgd.checkpoints import load_weights
from apgd.lora import write_adapter
from apgd.lora.training import attach, factors_of
from apgd.suites import LoraSettings, suites
from tests.lora.conftest import State, loaded_by_peft
from tests.tiny_t5 import tiny_t5

SETTINGS = LoraSettings(rank=3, alpha=4.5, targets=("q", "v"))
NUMBERS = torch.arange(8).view(2, 4)


def everything(_name: str) -> bool:
    return True


def test_a_fresh_adapter_changes_nothing_and_alone_learns(base: State) -> None:
    model = tiny_t5().eval()
    before = model(input_ids=NUMBERS, labels=NUMBERS).logits
    state = torch.get_rng_state()
    attach(model, SETTINGS, 0, everything)
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    after = model(input_ids=NUMBERS, labels=NUMBERS).logits
    torch.testing.assert_close(after, before, rtol=0, atol=2e-6)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 12
    assert sum(p.numel() for p in learning.values()) == 12 * 3 * (32 + 32)
    factors = factors_of(model)
    assert set(factors) == {n for n in base if n.endswith((".q.weight", ".v.weight"))}
    assert {one.scale for one in factors.values()} == {1.5}
    assert all(one.a.any() and not one.b.any() for one in factors.values())


def test_seeds_decide_the_start() -> None:
    def start(seed: int) -> torch.Tensor:
        model = tiny_t5()
        attach(model, SETTINGS, seed, everything)
        return next(iter(factors_of(model).values())).a

    assert torch.equal(start(3), start(3))
    assert not torch.equal(start(3), start(4))


def test_what_was_trained_is_written_as_it_computes(tmp_path: Path, base: State) -> None:
    model = tiny_t5()
    attach(model, SETTINGS, 0, everything)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.eval()
    computed = model(input_ids=NUMBERS, labels=NUMBERS).logits
    write_adapter(tmp_path, factors_of(model), alpha=SETTINGS.alpha, targets=SETTINGS.targets)
    for weights in (load_weights(tmp_path, "expert", base), loaded_by_peft(tmp_path)):
        whole = tiny_t5().eval()
        whole.load_state_dict(weights)
        logits = whole(input_ids=NUMBERS, labels=NUMBERS).logits
        torch.testing.assert_close(logits, computed, rtol=1e-5, atol=1e-5)


def test_only_what_may_change_gets_one() -> None:
    model = tiny_t5()
    attach(model, SETTINGS, 0, lambda name: name.startswith("decoder."))
    assert len(factors_of(model)) == 8
    assert all(name.startswith("decoder.") for name in factors_of(model))


@pytest.mark.parametrize(("name", "count"), [("base", 72), ("large", 144)])
def test_real_models_get_as_many_as_they_merge(name: str, count: int) -> None:
    suite = suites[f"flan_t5_{name}_glue_lora"]
    lora = suite.finetune.lora
    assert lora is not None
    with torch.device("meta"):
        model = suite.build_model()
        merged = {n for n, t in model.state_dict().items() if suite.is_merged(n, t)}
        attach(model, lora, 0, suite.is_trained)
    adapted = {n.split(".lora_A.")[0] for n, _ in model.named_parameters() if ".lora_A." in n}
    assert {f"{n}.weight" for n in adapted} == merged
    assert len(merged) == count


@pytest.mark.parametrize("is_adapted", [everything, lambda _name: False])
def test_targets_must_be_there(is_adapted: Callable[[str], bool]) -> None:
    targets = ("query",) if is_adapted is everything else ("q",)
    settings = LoraSettings(rank=3, alpha=4, targets=targets)
    with pytest.raises(InputError, match=f"but none is called {targets[0]}"):
        attach(tiny_t5(), settings, 0, is_adapted)
