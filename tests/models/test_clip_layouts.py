"""CLIP's parameters between libraries, with models of the libraries as witnesses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionModel

from apgd.errors import InputError
from apgd.models.clip_geometry import (
    GEOMETRIES,
    Activation,
    Geometry,
    check_activation,
    geometry_named,
    geometry_of,
)
from apgd.models.clip_hub import (
    open_clip_clip,
    transformers_clip,
    vision_config,
    vision_encoder,
)
from apgd.models.clip_layouts import (
    PROJECTION,
    Library,
    from_canonical,
    layout_of,
    library_layout,
    recognise,
    text_to_canonical,
    to_canonical,
    whole_to_canonical,
)
from tests.conftest import same_bits
from tests.models.conftest import TINY, State, reduced


def _same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[n], second[n]) for n in first)


@pytest.fixture(scope="module")
def tiny() -> State:
    """A whole canonical model whose every entry is another number."""
    torch.manual_seed(0)
    return {n: torch.randn_like(t) for n, t in transformers_clip(TINY).state_dict().items()}


@pytest.fixture(scope="module")
def fused(tiny: State) -> State:
    return from_canonical(tiny, library_layout(Library.OPEN_CLIP, TINY, text=True))


@pytest.mark.parametrize(
    "geometry",
    [GEOMETRIES["ViT-B-32"], reduced("ViT-B-16", vision=2), reduced("ViT-L-14", vision=2)],
    ids=lambda geometry: geometry.name,
)
def test_both_libraries_embed_alike(
    geometry: Geometry, pictures: Callable[[Geometry], Tensor]
) -> None:
    torch.manual_seed(2)
    theirs = vision_encoder(geometry).eval()
    stored = theirs.state_dict()
    canonical = to_canonical(stored)
    assert _same(canonical, dict(sorted(stored.items())))
    fused = from_canonical(canonical, library_layout(Library.OPEN_CLIP, geometry))
    visual = open_clip_clip(geometry).visual.eval()
    visual.load_state_dict({n.removeprefix("visual."): t for n, t in fused.items()})
    images = pictures(geometry)
    with torch.no_grad():
        expected = theirs(pixel_values=images).image_embeds
        found = visual(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert _same(to_canonical(visual.state_dict()), canonical)


def test_texts_embed_alike() -> None:
    torch.manual_seed(3)
    geometry = reduced("ViT-B-32", vision=1, text=2)
    ours, theirs = transformers_clip(geometry).eval(), open_clip_clip(geometry).eval()
    theirs.load_state_dict(
        from_canonical(
            whole_to_canonical(ours.state_dict()),
            library_layout(Library.OPEN_CLIP, geometry, text=True),
        )
    )
    tokens = torch.tensor([[49406, 320, 1125, 49407, 0], [49406, 5, 49407, 0, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 72))
    with torch.no_grad():
        expected = ours.get_text_features(padded).pooler_output
        found = theirs.encode_text(padded)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_open_clip_names_are_those_of_its_model(fused: State) -> None:
    model = open_clip_clip(TINY)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in fused.items()
    }


def test_queries_keys_and_values_are_told_apart(tiny: State, fused: State) -> None:
    block = "vision_model.encoder.layers.1.self_attn."
    stacked = fused["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for place, part in enumerate("qkv"):
        expected = tiny[f"{block}{part}_proj.weight"]
        assert torch.equal(stacked[place * 128 : (place + 1) * 128], expected)
    assert torch.equal(fused["visual.proj"], tiny[PROJECTION].T)


@pytest.mark.parametrize("wrapper", ["", "module.", "state_dict.", "image_encoder.model."])
@pytest.mark.parametrize("library", list(Library))
@pytest.mark.parametrize("text", [True, False])
def test_round_trip(tiny: State, library: Library, wrapper: str, text: bool) -> None:
    canonical = dict(sorted(tiny.items())) if text else to_canonical(tiny)
    state = {
        f"{wrapper}{n}": t
        for n, t in from_canonical(canonical, library_layout(library, TINY, text=text)).items()
    }
    layout = layout_of(state)
    assert (layout.library, layout.wrapper) == (library, wrapper)
    assert layout.text == (TINY.text if text else None)
    assert _same(whole_to_canonical(state), canonical)
    assert _same(from_canonical(canonical, layout), state)


def test_vision_models_of_old_and_new_versions(tiny: State) -> None:
    new = CLIPVisionModel(vision_config(TINY)).state_dict()
    assert "embeddings.class_embedding" in new
    old = {f"vision_model.{name}": tensor for name, tensor in new.items()}
    positions = torch.arange(5).view(1, 5)
    saved = {**old, "vision_model.embeddings.position_ids": positions}
    expected = dict(sorted(old.items()))
    for state in (new, old, saved, {**new, "embeddings.position_ids": positions}):
        assert _same(to_canonical(state), expected)
        assert layout_of(state).projection is None
    assert _same(from_canonical(expected, layout_of(new)), new)
    assert _same(from_canonical(expected, layout_of(saved)), old)
    assert layout_of(new) == library_layout(Library.TRANSFORMERS, TINY, projection=False)


def test_only_known_buffers_are_let_through(tiny: State) -> None:
    bad = {**tiny, "vision_model.encoder.position_ids": torch.arange(5)}
    with pytest.raises(InputError, match=r"too much: vision_model\.encoder\.position_ids$"):
        layout_of(bad)


def test_what_stays_of_a_deleted_text_tower_is_dropped(fused: State) -> None:
    left = {f"model.{n}": t for n, t in fused.items() if not n.startswith("transformer.")}
    layout = layout_of(left)
    assert layout.text is None
    assert "token_embedding.weight" in layout.dropped
    visual = {n: t for n, t in fused.items() if n.startswith("visual.")}
    assert _same(to_canonical(left), to_canonical(visual))
    with pytest.raises(InputError, match="must hold a whole text tower"):
        text_to_canonical(left)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_keep_their_values(fused: State, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in fused.items()}
    canonical = whole_to_canonical(stored)
    assert {tensor.dtype for tensor in canonical.values()} == {torch.float32}
    again = from_canonical(canonical, layout_of(stored), dtype=dtype)
    assert _same(again, stored)
    kept = whole_to_canonical(stored, dtype=None)
    assert {tensor.dtype for tensor in kept.values()} == {dtype}


def test_other_types_are_refused(tiny: State) -> None:
    with pytest.raises(InputError, match=r"must be of type float32, .*but is torch\.float64"):
        to_canonical({**tiny, PROJECTION: tiny[PROJECTION].double()})


def _without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize("library", list(Library))
def test_every_missing_and_every_extra_key_is_refused(
    tiny: State, fused: State, library: Library
) -> None:
    state = tiny if library is Library.TRANSFORMERS else fused
    for name in state:
        if "layers.1." not in name and "resblocks.1." not in name:
            with pytest.raises(InputError, match="missing|neither patch_embedding nor"):
                layout_of(_without(state, name))
    for extra in ("visual.ln_extra.weight", "vision_model.layers", "logit_bias"):
        with pytest.raises(InputError, match=f"too much: {extra}"):
            layout_of({**state, extra: torch.zeros(1)})


def test_missing_and_extra_keys_are_listed_together(fused: State) -> None:
    state = _without(fused, "visual.ln_post.bias", "ln_final.bias") | {"surplus": torch.zeros(1)}
    with pytest.raises(
        InputError,
        match=r"missing: visual\.ln_post\.bias, ln_final\.bias and these are too much: surplus",
    ):
        layout_of(state)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("visual.ln_pre.bias", (5,), r"visual\.ln_pre\.bias must have the shape \(128,\), but has"),
        ("visual.positional_embedding", (6, 128), "square picture and one more, but has 6"),
        ("visual.conv1.weight", (128, 3, 32), "must have 4 axes"),
        ("visual.conv1.weight", (128, 3, 32, 0), "none of them empty"),
        ("visual.conv1.weight", (128, 3, 16, 32), r"must have the shape \(128, 3, 16, 16\)"),
        ("visual.conv1.weight", (128, 1, 32, 32), r"must have the shape \(128, 3, 32, 32\)"),
        ("visual.proj", (32, 128), r"must have the shape"),
        ("logit_scale", (1,), r"logit_scale must have the shape \(\)"),
        ("visual.transformer.resblocks.999999999.ln_1.bias", (1,), "numbered without gaps"),
    ],
)
def test_wrong_shapes_are_refused(
    fused: State, name: str, shape: tuple[int, ...], message: str
) -> None:
    shapes = {n: tuple(t.shape) for n, t in fused.items()}
    with pytest.raises(InputError, match=message):
        recognise({**shapes, name: shape})


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(InputError, match="but neither patch_embedding nor conv1 is among: shared"):
        layout_of({"shared.weight": torch.zeros(3, 2)})
    with pytest.raises(InputError, match="must hold parameters"):
        layout_of({})


def test_incomplete_canonical_weights_are_refused(tiny: State) -> None:
    layout = library_layout(Library.OPEN_CLIP, TINY)
    with pytest.raises(InputError, match=r"0 are missing \(none\) and \d+ are too much"):
        from_canonical(tiny, layout)
    vision = to_canonical(tiny)
    with pytest.raises(InputError, match=r"1 are missing \(visual_projection\.weight\)"):
        from_canonical(_without(vision, PROJECTION), layout)
    with pytest.raises(InputError, match=r"visual_projection\.weight must have the shape"):
        from_canonical({**vision, PROJECTION: vision[PROJECTION].T}, layout)
    with pytest.raises(InputError, match="only a CLIPVisionModel"):
        library_layout(Library.OPEN_CLIP, TINY, projection=False)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_sizes_are_told_by_shapes(name: str) -> None:
    geometry = GEOMETRIES[name]
    with torch.device("meta"):
        ours, theirs = transformers_clip(geometry), open_clip_clip(geometry)
    for state in (ours.state_dict(), theirs.state_dict()):
        layout = layout_of(state)
        assert layout.vision == geometry.vision
        assert layout.text == geometry.text
        assert layout.projection == geometry.projection
        assert geometry_of(layout.vision) is geometry
    parameters = sum(p.numel() for p in ours.vision_model.parameters())
    published = {"ViT-B-32": 87_456_000, "ViT-B-16": 85_799_424, "ViT-L-14": 303_179_776}
    assert parameters == published[name]


def test_geometries_are_found_by_every_name() -> None:
    base = GEOMETRIES["ViT-B-16"]
    for name in ("ViT-B-16", "openai/clip-vit-base-patch16", "ViT-B-16-quickgelu"):
        assert geometry_named(name) is base
    with pytest.raises(InputError, match="unknown CLIP model 'ViT-B-8'; known are: ViT-B-32"):
        geometry_named("ViT-B-8")
    with pytest.raises(InputError, match="must have the sizes of one of ViT-B-32"):
        geometry_of(TINY.vision)


def test_the_exact_gelu_is_refused() -> None:
    base = GEOMETRIES["ViT-B-32"]
    check_activation(None, base, "expert")
    check_activation("quick_gelu", base, "expert")
    check_activation(Activation.QUICK_GELU, base, "expert")
    with pytest.raises(InputError, match="expert must use quick_gelu, .* but is said to use gelu"):
        check_activation("gelu", base, "expert")
