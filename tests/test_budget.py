"""The memory of fine-tuning: calculated, against what autograd keeps of models of real size."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from apgd.budget import CARD, finetune_budget
from apgd.lora.training import attach
from apgd.models.clip_hub import vision_encoder
from apgd.models.t5 import t5_config
from apgd.suites import suites
from apgd.suites.clip import ClipSuite
from apgd.suites.flan_t5 import FlanT5Suite

SUITES = ("clip_vit_b32_8", "clip_vit_b16_8", "clip_vit_l14_8", "flan_t5_base_glue",
          "flan_t5_large_glue", "flan_t5_base_glue_lora", "flan_t5_large_glue_lora")  # fmt: skip


def kept(
    build: Callable[[], nn.Module],
    loss: Callable[[Any, int], Any],
    mode: AbstractContextManager[object] | None = None,
) -> float:
    """Bytes per example that autograd keeps under bfloat16 autocast; nothing is computed."""

    def of_batch(batch: int) -> int:
        with mode or FakeTensorMode(allow_non_fake_inputs=True):
            model = build().train()
            weights = {p.untyped_storage()._cdata for p in model.parameters()}
            sizes: dict[int, int] = {}
            held = []  # so that no storage takes the place of another one

            def pack(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    sizes[storage._cdata] = storage.nbytes()
                held.append(storage)
                return tensor

            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16),
            ):
                loss(model, batch)
            return sum(sizes.values())

    return (of_batch(4) - of_batch(2)) / 2


@pytest.mark.parametrize("name", ["clip_vit_b32_8", "clip_vit_l14_8"])
def test_images_keep_what_autograd_keeps(name: str) -> None:
    suite = suites[name]
    assert isinstance(suite, ClipSuite)
    size = suite.geometry.vision.image_size
    found = kept(
        lambda: vision_encoder(suite.geometry),
        lambda model, n: model(pixel_values=torch.zeros(n, 3, size, size)).image_embeds.sum(),
    )
    assert found < suite.activation_bytes(recomputed=False) < 1.35 * found


def text_loss(model: Any, batch: int) -> Any:
    prompts = torch.ones(batch, 512, dtype=torch.int64)
    answers = torch.ones(batch, 10, dtype=torch.int64)
    scores = model(
        input_ids=prompts, attention_mask=prompts, labels=answers, use_cache=False
    ).logits
    return nn.functional.cross_entropy(scores.float().transpose(1, 2), answers)


@pytest.mark.parametrize("name", ["flan_t5_base_glue", "flan_t5_large_glue"])
def test_prompts_keep_what_autograd_keeps(name: str) -> None:
    suite = suites[name]
    found = kept(suite.build_model, text_loss)
    assert found < suite.activation_bytes(recomputed=False) < 1.35 * found


def test_adapters_keep_no_more() -> None:
    config = t5_config(vocab_size=512, width=128, mlp_width=256, layers=2, heads=2, head_width=64)
    suite = FlanT5Suite("small", "base", config, lora=True)
    lora = suite.finetune.lora
    assert lora is not None

    def build() -> nn.Module:
        model = suite.build_model()
        attach(model, lora, 0, suite.is_trained)
        return model

    found = kept(build, text_loss, nullcontext())  # PEFT's layers must be real
    assert found < suite.activation_bytes(recomputed=False)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_fits_a_card_of_24_gb(name: str) -> None:
    suite = suites[name]
    budget = finetune_budget(suite, suite.finetune)
    assert budget.fits
    assert budget.available == CARD
    assert "calculated, not measured; fits" in budget.sentence


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("flan_t5_base_glue", 247_577_856),
        ("flan_t5_large_glue", 783_150_080),
        ("clip_vit_b32_8", 87_849_216),
        ("clip_vit_l14_8", 303_966_208),
    ],
)
def test_sizes_are_those_of_the_real_models(name: str, count: int) -> None:
    budget = finetune_budget(suites[name], suites[name].finetune)
    assert budget.weights == budget.gradients == 4 * count
    assert budget.moments == 8 * count
    assert budget.copies == 2 * count


def test_an_adapter_learns_little() -> None:
    suite = suites["flan_t5_base_glue_lora"]
    budget = finetune_budget(suite, suite.finetune)
    assert budget.gradients == 4 * 72 * 16 * (768 + 768)
    assert budget.weights == 4 * 247_577_856


def test_smaller_cards_take_smaller_micro_batches_or_none() -> None:
    suite = suites["flan_t5_base_glue"]
    budgets = [finetune_budget(suite, suite.finetune, gb * 10**9) for gb in (80, 16, 10, 2)]
    sizes = [budget.micro_batch for budget in budgets]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 16 > sizes[1] > 1
    assert not budgets[-1].fits
    assert "does not fit into 2 GB" in budgets[-1].sentence


def test_recomputing_saves_most_activations() -> None:
    for name in ("flan_t5_large_glue", "clip_vit_l14_8"):
        whole, less = (suites[name].activation_bytes(recomputed=r) for r in (False, True))
        assert less < whole / 5
