"""Exported folders, loaded by the plain libraries."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    T5Config,
    T5ForConditionalGeneration,
)

from apgd.checkpoints import load_weights, save_weights
from apgd.cli import main
from apgd.errors import InputError
from apgd.export import Library, Origin, export, origin_of
from apgd.files import sha256_path
from apgd.lora import Factors, write_adapter
from apgd.models.clip import mini_clip, mini_geometry
from apgd.models.clip_geometry import GEOMETRIES, Activation, Geometry
from apgd.models.clip_hub import transformers_clip, vision_config, vision_encoder
from apgd.models.clip_layouts import to_canonical, whole_to_canonical
from tests.conftest import save_shards
from tests.models.conftest import TINY, State

MERGE = {"method": "task_arithmetic", "params": {"coefficient": 0.3}, "experts": ["cars", "mnist"]}


def _pictures(geometry: Geometry) -> Tensor:
    size = geometry.vision.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A vision tower as a suite's merge writes it."""
    torch.manual_seed(0)
    path = tmp_path / "merged.safetensors"
    save_weights(path, vision_encoder(TINY).state_dict(), MERGE, for_transformers=True)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    transformers_clip(TINY).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"do_resize": false}')
    (tmp_path / "base" / "modeling_evil.py").write_text("raise SystemExit")
    return tmp_path / "base"


def _embedded(state: State, geometry: Geometry) -> Tensor:
    encoder = vision_encoder(geometry).eval()
    encoder.load_state_dict(to_canonical(state))
    with torch.no_grad():
        return encoder(pixel_values=_pictures(geometry)).image_embeds


def test_a_vision_tower_for_transformers(merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(merged, out, Library.TRANSFORMERS, origin_of(merged), geometry=TINY)
    model, info = CLIPVisionModelWithProjection.from_pretrained(
        out, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    assert model.config.hidden_act == "quick_gelu"
    with torch.no_grad():
        found = model(pixel_values=_pictures(TINY)).image_embeds
    expected = _embedded(load_weights(merged, "merged"), TINY)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert AutoImageProcessor.from_pretrained(out).crop_size["height"] == 64
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_whole_model_for_transformers(merged: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(merged, out, Library.TRANSFORMERS, origin_of(merged), base=base, geometry=TINY)
    model, info = CLIPModel.from_pretrained(out, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    tokens = torch.tensor([[48, 3, 4, 49, 0], [48, 5, 49, 0, 0]])
    with torch.no_grad():
        found = model.get_image_features(pixel_values=_pictures(TINY)).pooler_output
        texts = model.get_text_features(tokens).pooler_output
        expected = CLIPModel.from_pretrained(base).get_text_features(tokens).pooler_output
    torch.testing.assert_close(
        found, _embedded(load_weights(merged, "merged"), TINY), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(texts, expected, atol=1e-5, rtol=0)
    assert (out / "preprocessor_config.json").read_text() == '{"do_resize": false}'
    assert not (out / "modeling_evil.py").exists()


def test_a_whole_model_for_open_clip(merged: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(merged, out, Library.OPEN_CLIP, origin_of(merged), base=base, geometry=TINY)
    model, _, process = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokens = torch.tensor([[48, 3, 4, 49, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        found = model.eval().encode_image(_pictures(TINY))
        texts = model.encode_text(tokens)
        expected = CLIPModel.from_pretrained(base).get_text_features(tokens).pooler_output
    torch.testing.assert_close(
        found, _embedded(load_weights(merged, "merged"), TINY), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(texts, expected, atol=1e-5, rtol=0)
    normalize = process.transforms[-1]
    assert tuple(normalize.mean) == TINY.mean
    assert tuple(normalize.std) == TINY.std
    # What was exported can be a base or an expert again.
    again = tmp_path / "again"
    export(out, again, Library.TRANSFORMERS, origin_of(merged), geometry=TINY)
    assert whole_to_canonical(load_weights(again, "a")).keys() == load_weights(again, "a").keys()


@pytest.mark.parametrize("library", list(Library))
def test_the_embedded_suites_model(library: Library, tmp_path: Path) -> None:
    torch.manual_seed(2)
    toy = mini_clip(40).eval()
    merged = tmp_path / "merged.safetensors"
    save_weights(merged, toy.state_dict(), MERGE)
    out = tmp_path / "out"
    content = export(merged, out, library, origin_of(merged))
    assert content.activation == "gelu"
    geometry = mini_geometry(40)
    pictures, tokens = _pictures(geometry), torch.tensor([[38, 1, 2, 39, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        if library is Library.OPEN_CLIP:
            model = open_clip.create_model_and_transforms(f"local-dir:{out}")[0].eval()
            found, texts = model.encode_image(pictures), model.encode_text(tokens)
        else:
            model = CLIPModel.from_pretrained(out)
            found = model.get_image_features(pixel_values=pictures).pooler_output
            texts = model.get_text_features(tokens).pooler_output
        torch.testing.assert_close(found, toy.encode_image(pictures), atol=1e-5, rtol=0)
        torch.testing.assert_close(texts, toy.encode_text(tokens), atol=1e-5, rtol=0)
    text = (out / "README.md").read_text()
    assert "reads 40 words of its own" in text
    assert "base_model" not in text


def test_the_papers_size_brings_its_tokenizer(tmp_path: Path) -> None:
    geometry = GEOMETRIES["ViT-B-32"]
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in transformers_clip(geometry).state_dict().items()}
    merged = tmp_path / "merged.safetensors"
    save_weights(merged, {name: torch.zeros(shape) for name, shape in shapes.items()}, MERGE)
    content = export(merged, tmp_path / "out", Library.TRANSFORMERS, origin_of(merged))
    assert content.base_model == "openai/clip-vit-base-patch32"
    assert content.parameters == 151_277_313
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("a photo of a cat.")["input_ids"] == [
        49406, 320, 1125, 539, 320, 2368, 269, 49407,
    ]  # fmt: skip
    assert tokenizer.model_max_length == 77


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A base of T5 whose embeddings are not tied, as Flan-T5's."""
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    model.save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer_config.json").write_text("{}")
    state = load_weights(tmp_path / "t5", "t5")
    save_weights(tmp_path / "merged_t5.safetensors", {n: t * 1.5 for n, t in state.items()}, MERGE)
    return tmp_path / "t5"


def test_a_t5(t5: Path, tmp_path: Path) -> None:
    merged, out = tmp_path / "merged_t5.safetensors", tmp_path / "out"
    origin = origin_of(merged, base_model="google/flan-t5-base")
    export(merged, out, Library.TRANSFORMERS, origin, base=t5)
    assert (out / "config.json").read_bytes() == (t5 / "config.json").read_bytes()
    assert (out / "tokenizer_config.json").exists()
    model, info = T5ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    expected = load_weights(merged, "merged")
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])
    assert torch.equal(model.shared.weight, expected["shared.weight"])
    assert not torch.equal(model.shared.weight, model.lm_head.weight)
    assert ModelCard.load(out / "README.md").data.base_model == "google/flan-t5-base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.final_layer_norm.weight"), "must hold encoder.final_layer_norm"),
        (lambda s: s.update(extra=torch.ones(1)), "does not have, but holds extra"),
        (lambda s: s.update({"lm_head.weight": torch.ones(2, 2)}), "must hold lm_head.weight of"),
        (
            lambda s: s.update({"encoder.embed_tokens.weight": torch.ones(40, 16)}),
            "encoder.embed_tokens.weight of .* must be a copy of shared.weight",
        ),
    ],
)
def test_an_incomplete_t5_is_refused(
    t5: Path, tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    state = load_weights(t5, "t5")
    change(state)
    save_weights(tmp_path / "bad.safetensors", state, MERGE)
    origin = origin_of(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=message):
        export(tmp_path / "bad.safetensors", tmp_path / "o", Library.TRANSFORMERS, origin, base=t5)
    assert not (tmp_path / "o").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_missing_is_said(merged: Path, t5: Path, base: Path, tmp_path: Path) -> None:
    origin, out = origin_of(merged), tmp_path / "out"
    with pytest.raises(InputError, match="so a base must be given for the text tower"):
        export(merged, out, Library.OPEN_CLIP, origin, geometry=TINY)
    with pytest.raises(InputError, match="must have the sizes of one of ViT-B-32"):
        export(merged, out, Library.TRANSFORMERS, origin)
    out.mkdir()
    with pytest.raises(InputError, match=r"makes a new folder, but .*out exists already"):
        export(merged, out, Library.TRANSFORMERS, origin, geometry=TINY)
    out.rmdir()
    with pytest.raises(InputError, match="must lie in one that exists"):
        export(merged, out / "deep", Library.TRANSFORMERS, origin, geometry=TINY)
    with pytest.raises(InputError, match="must be that of tiny"):
        export(merged, out, Library.OPEN_CLIP, origin, geometry=TINY, base=_other_base(tmp_path))
    text = tmp_path / "merged_t5.safetensors"
    with pytest.raises(InputError, match="a base folder must be given for the configuration"):
        export(text, out, Library.TRANSFORMERS, origin_of(text))
    with pytest.raises(InputError, match="must be the configuration of a T5, but its model_type"):
        export(text, out, Library.TRANSFORMERS, origin_of(text), base=base)
    with pytest.raises(InputError, match="for transformers only, but got open_clip"):
        export(text, out, Library.OPEN_CLIP, origin_of(text), base=t5)


def _other_base(tmp_path: Path) -> Path:
    other = replace(TINY, text=replace(TINY.text, context=11))
    transformers_clip(other).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_weights_of_the_exact_gelu_are_refused(merged: Path, base: Path, tmp_path: Path) -> None:
    state = load_weights(merged, "merged")
    save_weights(tmp_path / "gelu.safetensors", state, {**MERGE, "activation": "gelu"})
    origin = origin_of(merged)
    with pytest.raises(InputError, match="must use quick_gelu"):
        export(
            tmp_path / "gelu.safetensors", tmp_path / "o", Library.TRANSFORMERS, origin,
            geometry=TINY,
        )  # fmt: skip
    gelu = replace(TINY, activation=Activation.GELU)
    folder = save_shards(tmp_path / "shards", state)
    vision_config(gelu).save_pretrained(folder)
    with pytest.raises(InputError, match="must use quick_gelu"):
        export(folder, tmp_path / "o", Library.TRANSFORMERS, origin, geometry=TINY)
    transformers_clip(gelu).save_pretrained(tmp_path / "gelu")
    with pytest.raises(InputError, match=r"the base .*must use quick_gelu"):
        export(
            merged, tmp_path / "o", Library.OPEN_CLIP, origin, geometry=TINY,
            base=tmp_path / "gelu",
        )  # fmt: skip


def _files(tmp_path: Path) -> list[str]:
    """A merge of two experts of the embedded suite's shape, by the command line."""
    torch.manual_seed(4)
    save_weights(tmp_path / "base.safetensors", mini_clip(30).state_dict())
    arguments = []
    for name in ("cars", "pets|and\nmore"):
        path = tmp_path / f"{name[:4]}.safetensors"
        save_weights(path, mini_clip(30).state_dict(), {"source": f"{name[:4]}.pt"})
        arguments += ["--expert", f"{name}={path}"]
    return arguments


@pytest.mark.parametrize("out", ["merged.safetensors", "merged"])
def test_from_merge_to_export_on_the_command_line(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = _files(tmp_path)
    merge = ["merge", "--method", "doge_ta", "--iterations", "2", "--suite", "mini_vision",
             "--base", str(tmp_path / "base.safetensors"), *experts, "--out", str(tmp_path / out),
             "--summary", str(tmp_path / "summary.json")]  # fmt: skip
    assert main(merge) == 0, capsys.readouterr().err
    (tmp_path / "scores.json").write_text('{"cars": 61.25, "pets": 0.5}')
    folder = tmp_path / "folder"
    arguments = ["export", str(tmp_path / out), str(folder), *experts,
                 "--summary", str(tmp_path / "summary.json"),
                 "--scores", str(tmp_path / "scores.json"), "--library", "open_clip"]  # fmt: skip
    capsys.readouterr()
    assert main(arguments) == 0, capsys.readouterr().err
    assert "CLIP (mini) for open_clip" in capsys.readouterr().out
    model = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0]
    found, expected = model.state_dict(), load_weights(tmp_path / out, "merged")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    text = (folder / "README.md").read_text()
    for name in ("cars", "pets"):
        assert sha256_path(tmp_path / f"{name}.safetensors") in text
        assert f"{name}.pt" in text
    assert "| pets\\|and more | pets.safetensors |" in text
    assert "| cars | 61.25 |" in text
    assert "| iterations | 2 |" in text
    assert "| merged | 16 matrices; " in text
    assert "see base" in text
    data = ModelCard(text).data
    assert data.library_name == "open_clip"
    assert {"model-merging", "merge", "apgd", "clip"} <= set(data.tags)
    assert data.license == "other"
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_card_is_the_hubs(merged: Path, tmp_path: Path) -> None:
    origin = origin_of(merged, title="Two in one", base_model="openai/clip-vit-base-patch32")
    export(merged, tmp_path / "out", Library.TRANSFORMERS, origin, geometry=TINY)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "base_model": "openai/clip-vit-base-patch32",
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": "other",
        "license_name": "see-base-model",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["model-merging", "merge", "apgd", "clip"],
    }
    for words in (
        "# Two in one", "QuickGELU", "| coefficient | 0.3 |", "not recorded", "None were given",
        "| cars |", "| mnist |", "CLIPVisionModelWithProjection.from_pretrained",
    ):  # fmt: skip
        assert words in card.content
    manifest = card.text.split("```json\n")[1].split("\n```")[0]
    assert json.loads(manifest) == MERGE


def test_origins_that_do_not_fit_are_refused(merged: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "plain.safetensors", {"x": torch.ones(1)})
    with pytest.raises(InputError, match="must say what they were merged from"):
        origin_of(tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="the experts must be those of the merge, cars, mnist"):
        origin_of(merged, experts={"cars": merged})
    (tmp_path / "s.json").write_text('{"method": "ties", "params": {}, "experts": []}')
    with pytest.raises(InputError, match="the summary of this merge by task_arithmetic, but"):
        origin_of(merged, summary=tmp_path / "s.json")
    (tmp_path / "f.json").write_text('{"cars": "good"}')
    with pytest.raises(InputError, match="must map tasks to figures, but 'cars' has 'good'"):
        origin_of(merged, scores=tmp_path / "f.json")
    unknown = Origin(title="x", method="magic", params={}, experts=())
    with pytest.raises(InputError, match="unknown method 'magic'"):
        export(merged, tmp_path / "o", Library.TRANSFORMERS, unknown, geometry=TINY)
    assert main(["export", str(merged), str(tmp_path / "o"), "--expert", "cars"]) == 2


def test_an_expert_may_be_an_adapter(tmp_path: Path) -> None:
    merged, adapter = tmp_path / "merged.safetensors", tmp_path / "adapter"
    about = {"method": "ties", "params": {}, "experts": ["a"]}
    save_weights(merged, {"q.weight": torch.zeros(4, 3)}, about)
    write_adapter(adapter, {"q.weight": Factors(torch.ones(2, 3), torch.ones(4, 2))})
    (expert,) = origin_of(merged, experts={"a": adapter}).experts
    assert (expert.file, expert.sha256) == ("adapter", sha256_path(adapter))
