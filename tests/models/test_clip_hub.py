"""Zero-shot heads of both libraries, and reading towers from files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPVisionModel

from apgd.checkpoints import save_weights
from apgd.data.tasks import Task
from apgd.errors import InputError
from apgd.models.clip import class_vectors
from apgd.models.clip_geometry import GEOMETRIES
from apgd.models.clip_hub import (
    clip_tokenizer,
    open_clip_clip,
    open_clip_config,
    read_text_tower,
    read_vision_tower,
    recorded_activation,
    transformers_clip,
    transformers_zero_shot_head,
    vision_config,
    vision_encoder,
)
from apgd.models.clip_layouts import (
    PROJECTION,
    Library,
    from_canonical,
    library_layout,
    text_to_canonical,
    to_canonical,
    whole_to_canonical,
)
from tests.conftest import same_bits
from tests.models.conftest import TINY, reduced

# Names of the paper's tasks that are hard to cut into tokens.
NAMES = (
    "church indoor", "AM General Hummer SUV 2000", "Dodge Ram Pickup 3500 Crew Cab 2010",
    "Ferrari 458 Italia Coupe 2012", "Mercedes-Benz 300-Class Convertible 1993",
    "red and white triangle with person digging / construction / road works",
    "end / de-restriction of 80kph speed limit", "red and white circle 20 kph speed limit",
    "permanent crop land", "0", "10", "bird of paradise", "colt's foot", "bishop of llandaff",
    "lymph node containing metastatic tumor tissue", "St. Bernard", "black-eyed susan",
    "T-shirt/top", "crème brûlée", "お", "ま", "interlaced", "saint_bernard", "A  B\tC",
    "it'll we'd",
)  # fmt: skip
TEMPLATES = ("a photo of a {}.", "a centered satellite photo of {}.", "a zoomed in photo of a {}")


def test_tokenizers_of_both_libraries_agree() -> None:
    ours, theirs = clip_tokenizer(), SimpleTokenizer()
    assert len(ours) == theirs.vocab_size == 49408
    for name in NAMES:
        for template in TEMPLATES:
            text = template.format(name)
            expected = theirs(text)[0].tolist()
            end = expected.index(theirs.eot_token_id) + 1
            assert ours(text)["input_ids"] == expected[:end], text


def test_zero_shot_heads_of_both_libraries_agree() -> None:
    torch.manual_seed(0)
    geometry = reduced("ViT-B-32", vision=1, text=2)
    ours, theirs = transformers_clip(geometry), open_clip_clip(geometry)
    layout = library_layout(Library.OPEN_CLIP, geometry, text=True)
    theirs.load_state_dict(from_canonical(whole_to_canonical(ours.state_dict()), layout))
    task = Task(
        name="names", title="Names", stands_for=None, class_names=NAMES, templates=TEMPLATES
    )
    head = transformers_zero_shot_head(ours, clip_tokenizer(), task)
    assert (head.dtype, head.shape) == (torch.float32, (len(NAMES), 512))
    torch.testing.assert_close(head.norm(dim=1), ours.logit_scale.exp().detach().expand(len(NAMES)))
    expected = class_vectors(theirs, SimpleTokenizer(), task)
    torch.testing.assert_close(head, expected, atol=1e-4, rtol=0)
    assert ours.training
    # The classes differ, so agreement is not that of constants.
    units = head / head.norm(dim=1, keepdim=True)
    assert (units @ units.T - torch.eye(len(NAMES))).max() < 0.9999


def test_a_long_text_is_cut_alike() -> None:
    torch.manual_seed(1)
    geometry = reduced("ViT-B-32", vision=1)
    ours, theirs = transformers_clip(geometry), open_clip_clip(geometry)
    layout = library_layout(Library.OPEN_CLIP, geometry, text=True)
    theirs.load_state_dict(from_canonical(whole_to_canonical(ours.state_dict()), layout))
    task = Task(name="x", title="", stands_for=None, class_names=("long " * 90,), templates=("{}",))
    torch.testing.assert_close(
        transformers_zero_shot_head(ours, clip_tokenizer(), task),
        class_vectors(theirs, SimpleTokenizer(), task),
        atol=1e-4,
        rtol=0,
    )


def test_configurations_are_those_of_open_clip() -> None:
    import open_clip

    for geometry in GEOMETRIES.values():
        ours, theirs = (
            open_clip_config(geometry),
            open_clip.get_model_config(geometry.open_clip_model),
        )
        for name in ("embed_dim", "quick_gelu"):
            assert ours[name] == theirs[name]
        for part in ("vision_cfg", "text_cfg"):
            assert theirs[part].items() <= ours[part].items()


def test_the_encoder_uses_the_quick_gelu() -> None:
    encoder = vision_encoder(TINY)
    assert encoder.config.hidden_act == "quick_gelu"
    x = torch.linspace(-3, 3, 7)
    mlp = encoder.vision_model.encoder.layers[0].mlp
    torch.testing.assert_close(mlp.activation_fn(x), x * torch.sigmoid(1.702 * x))


def test_towers_are_read_from_either_librarys_folder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = transformers_clip(TINY)
    model.save_pretrained(tmp_path / "transformers")
    state = whole_to_canonical(model.state_dict())
    other = tmp_path / "open_clip"
    layout = library_layout(Library.OPEN_CLIP, TINY, text=True)
    save_weights(other / "open_clip_model.safetensors", from_canonical(state, layout))
    config = {"model_cfg": open_clip_config(TINY), "preprocess_cfg": {}}
    (other / "open_clip_config.json").write_text(json.dumps(config))
    for folder in (tmp_path / "transformers", other):
        assert recorded_activation(folder) == "quick_gelu"
        vision = read_vision_tower(folder, TINY, "base")
        assert vision.keys() == to_canonical(state).keys()
        text = read_text_tower(folder, TINY, "base")
        assert text.keys() == text_to_canonical(state).keys()
        assert all(same_bits(t, state[n]) for n, t in (vision | text).items())


def test_an_expert_without_projection_gets_the_bases(tmp_path: Path) -> None:
    CLIPVisionModel(vision_config(TINY)).half().save_pretrained(tmp_path)
    projection = torch.randn(32, 128)
    with pytest.raises(
        InputError, match=r"expert must hold visual_projection\.weight, or be given"
    ):
        read_vision_tower(tmp_path, TINY, "expert")
    found = read_vision_tower(tmp_path, TINY, "expert", projection=projection)
    assert found[PROJECTION] is projection
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert found.keys() == vision_encoder(TINY).state_dict().keys()
    with pytest.raises(InputError, match="must have the shape"):
        read_vision_tower(tmp_path, TINY, "expert", projection=projection.T)


def test_a_folder_from_before_safetensors_is_read(tmp_path: Path) -> None:
    model = transformers_clip(TINY)
    model.config.save_pretrained(tmp_path)
    state = {**model.state_dict(), "text_model.embeddings.position_ids": torch.arange(9)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = read_vision_tower(tmp_path, TINY, "base") | read_text_tower(tmp_path, TINY, "base")
    assert found.keys() == model.state_dict().keys()
    assert all(same_bits(tensor, state[name]) for name, tensor in found.items())


def test_the_exact_gelu_is_refused_wherever_it_is_said(tmp_path: Path) -> None:
    gelu = replace(TINY, activation=type(TINY.activation)("gelu"))
    transformers_clip(gelu).save_pretrained(tmp_path / "whole")
    vision_encoder(gelu).save_pretrained(tmp_path / "vision")
    state = transformers_clip(TINY).state_dict()
    save_weights(tmp_path / "file.safetensors", state, {"activation": "gelu"})
    save_weights(tmp_path / "open_clip" / "open_clip_model.safetensors", state)
    config = {"model_cfg": open_clip_config(gelu)}
    (tmp_path / "open_clip" / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("whole", "vision", "file.safetensors", "open_clip"):
        with pytest.raises(InputError, match=r"must use quick_gelu, .* said to use gelu$"):
            read_vision_tower(tmp_path / name, TINY, "expert")


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", vision_encoder(TINY).state_dict())
    assert recorded_activation(tmp_path / "a.safetensors") is None
    with pytest.raises(InputError, match=r"tower of base must be that of ViT-B-32, .*but is"):
        read_vision_tower(tmp_path / "a.safetensors", GEOMETRIES["ViT-B-32"], "base")
    with pytest.raises(InputError, match="must hold a whole text tower"):
        read_text_tower(tmp_path / "a.safetensors", TINY, "base")
    with pytest.raises(InputError, match="does not exist"):
        read_vision_tower(tmp_path / "b.safetensors", TINY, "base")
    other = replace(TINY, text=replace(TINY.text, context=11))
    save_weights(tmp_path / "c.safetensors", transformers_clip(other).state_dict())
    with pytest.raises(InputError, match="the text tower of base must be that of tiny"):
        read_text_tower(tmp_path / "c.safetensors", TINY, "base")


def test_damaged_configurations_are_refused(tmp_path: Path) -> None:
    vision_encoder(TINY).save_pretrained(tmp_path)
    for text, message in (
        ("[1]", "must hold a JSON object, but holds a list"),
        ("{", "must hold a JSON object, but could not be read"),
        ('{"vision_config": 3}', "must hold the object vision_config, but holds 3"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_vision_tower(tmp_path, TINY, "base")
