"""The short way to CLIP's embeddings against the models' own forward passes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.func import functional_call

from apgd.data import ImageExamples
from apgd.layer_inputs import LayerInputs
from apgd.models import clip
from apgd.models.class_token import open_clip_embeddings, transformers_embeddings
from apgd.models.clip_hub import open_clip_clip, vision_encoder
from apgd.models.compilation import Encoder
from apgd.suites import clip as clip_suites
from apgd.suites.mini_vision import MINI_VISION
from tests.models.conftest import TINY


def noisy(model: nn.Module) -> nn.Module:
    """The same model, where norms and biases too are random, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def mini() -> nn.Module:
    return noisy(clip.mini_clip(50))


def pictures(size: int, count: int = 5) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def small_open_clip(**vision: object) -> nn.Module:
    """A CLIP of open_clip whose image tower has other options."""
    sizes = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = CLIPTextCfg(context_length=4, vocab_size=10, width=16, heads=1, layers=1)
    return noisy(CLIP(16, CLIPVisionCfg(**{**sizes, **vision}), text))  # type: ignore[arg-type]


BOTH = pytest.mark.parametrize(
    ("build", "size", "own", "short", "block"),
    [
        (mini, 32, clip.encode, clip.encode_class_token, "visual.transformer.resblocks.3."),
        (
            lambda: noisy(open_clip_clip(TINY)), 64, clip.encode, clip.encode_class_token,
            "visual.transformer.resblocks.1.",
        ),
        (
            lambda: noisy(vision_encoder(TINY)), 64, clip_suites.encode,
            clip_suites.encode_class_token, "vision_model.encoder.layers.1.",
        ),
        (
            lambda: noisy(vision_encoder(replace(TINY, vision=replace(TINY.vision, layers=1)))),
            64, clip_suites.encode, clip_suites.encode_class_token,
            "vision_model.encoder.layers.0.",
        ),
    ],
    ids=["mini", "open_clip", "transformers", "one block"],
)  # fmt: skip


@BOTH
def test_embeddings_are_the_models_own(
    build: Callable[[], nn.Module], size: int, own: Encoder, short: Encoder, block: str
) -> None:
    model, pixels = build(), pictures(size)
    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with context():
            embedded, expected = short(model, pixels), own(model, pixels)
        torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-6)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # not a model that sees nothing


@BOTH
def test_the_last_block_really_is_cut_short(
    build: Callable[[], nn.Module], size: int, own: Encoder, short: Encoder, block: str
) -> None:
    model = build()
    mlp = next(m for n, m in model.named_modules() if n == f"{block}mlp")
    seen: list[tuple[int, ...]] = []
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        short(model, pictures(size))
    assert len(seen) == 1
    assert seen[0][:-1] == (5,)


@BOTH
def test_gradients_are_the_models_own(
    build: Callable[[], nn.Module], size: int, own: Encoder, short: Encoder, block: str
) -> None:
    model, pixels = build(), pictures(size)

    def gradients(encoder: Encoder) -> dict[str, Tensor]:
        model.zero_grad()
        encoder(model, pixels)[:, 0].sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients(own), gradients(short)
    # A key's bias changes no attention, so the short way does without it.
    keys_bias = f"{block}self_attn.k_proj.bias"
    assert set(found) | {keys_bias} == set(expected) | {keys_bias}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    if keys_bias in expected:
        assert expected[keys_bias].abs().max() < 1e-6


@BOTH
def test_weights_given_by_a_functional_call_are_used(
    build: Callable[[], nn.Module], size: int, own: Encoder, short: Encoder, block: str
) -> None:
    class Calling(nn.Module):
        def __init__(self, encoder: Encoder) -> None:
            super().__init__()
            self.model, self.encoder = build(), encoder

        def forward(self, pixels: Tensor) -> Tensor:
            return self.encoder(self.model, pixels)

    pixels, calling = pictures(size), Calling(short)
    scale = torch.tensor(1.1, requires_grad=True)
    weights = {
        n: p * scale if n.startswith(f"model.{block}") else p.detach()
        for n, p in calling.named_parameters()
    }
    found = functional_call(calling, weights, pixels)
    expected = functional_call(Calling(own), weights, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    slopes = [
        torch.autograd.grad(y[:, 0].sum(), scale, retain_graph=True)[0] for y in (found, expected)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


OTHERS = {
    "training": lambda: mini().train(),
    "mean of the patches": lambda: small_open_clip(pool_type="avg"),
    "attentional pooling": lambda: small_open_clip(attentional_pool=True, attn_pooler_heads=4),
    "tokens too": lambda: small_open_clip(output_tokens=True),
    "scaled layers": lambda: small_open_clip(ls_init_value=0.5),
    "normed queries": lambda: small_open_clip(qk_norm=True),
    "one block": lambda: small_open_clip(layers=1),
    "another model": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_what_the_short_way_does_not_know_of_open_clip(build: Callable[[], nn.Module]) -> None:
    assert open_clip_embeddings(build(), pictures(16)) is None


@pytest.mark.parametrize("norm_after", [False, True])
def test_other_options_of_open_clip_that_change_nothing(norm_after: bool) -> None:
    model, pixels = small_open_clip(final_ln_after_pool=norm_after), pictures(16)
    found = open_clip_embeddings(model, pixels)
    assert found is not None
    expected = model.encode_image(pixels)  # type: ignore[operator]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_pooling_goes_through_the_models_own_forward() -> None:
    model, pixels = small_open_clip(pool_type="avg"), pictures(16)
    assert torch.equal(clip.encode_class_token(model, pixels), clip.encode(model, pixels))


def test_what_the_short_way_does_not_know_of_transformers() -> None:
    model = noisy(vision_encoder(TINY))
    assert transformers_embeddings(model.vision_model, pictures(64)) is None
    assert transformers_embeddings(model.train(), pictures(64)) is None
    model.eval()
    adapted = LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False)
    inject_adapter_in_model(adapted, model)
    assert transformers_embeddings(model, pictures(64)) is None
    found, own = (
        f(model, pictures(64)) for f in (clip_suites.encode_class_token, clip_suites.encode)
    )
    assert torch.equal(found, own)


def test_what_watches_layers_sees_every_token() -> None:
    """RegMean's sums are over all tokens, so a head's loss must not take the short way."""
    model = MINI_VISION.build_model().eval()
    head = MINI_VISION.head(model, MINI_VISION.tasks[0])
    rng = np.random.default_rng(0)
    examples = ImageExamples(rng.integers(0, 256, (2, 32, 32, 3), np.uint8), np.zeros(2, np.int64))
    name = "visual.transformer.resblocks.3.mlp.c_fc.weight"
    model.requires_grad_(False)
    with LayerInputs({name: model.get_parameter(name)}) as inputs:
        head.loss(model, examples, np.arange(2))
    assert set(inputs._counts.values()) == {2 * 17}
