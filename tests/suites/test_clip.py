"""The paper's vision suites at real widths and reduced depth, offline, from the hub's formats."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from apgd import InputError
from apgd.data import Split
from apgd.data.hub import HubDataset
from apgd.data.prepared import prepare
from apgd.models.clip_geometry import GEOMETRIES, Geometry
from apgd.models.clip_hub import transformers_clip, vision_config
from apgd.published import IN_DOMAIN, Family, published_rows
from apgd.suites import suites
from apgd.suites.clip import CLIP_SUITES, ClipSuite
from apgd.suites.facts import vision_datasets
from tests.hub_cache import HubCache, offline_cache
from tests.suites.whole_path import run_whole_path
from tune.records import Variant

SEEN, UNSEEN = ("eurosat", "mnist"), ("svhn",)
TASKS = (*SEEN, *UNSEEN)


def shallow(name: str) -> Geometry:
    """One of the paper's models with one block per tower, on images of 3 x 3 patches."""
    whole = GEOMETRIES[name]
    return replace(
        whole,
        vision=replace(whole.vision, layers=1, image_size=3 * whole.vision.patch),
        text=replace(whole.text, layers=1),
    )


def small_datasets() -> dict[str, HubDataset]:
    """The real declarations, without the numbers of rows of the whole data sets."""
    return {name: replace(vision_datasets()[name], rows={}) for name in TASKS}


def image_of(label: int, number: int) -> bytes:
    """A picture that shows its label as a shade; its height is odd, as real ones may be."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 60, (41, 56, 3)) + 18 * label
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def image_folder(root: Path, dataset: HubDataset, per_class: int = 3) -> Path:
    """A local copy as a folder per split and class."""
    assert dataset.class_names is not None
    for number, split in enumerate(dataset.sources):
        for label, name in enumerate(dataset.class_names):
            folder = root / split / name.replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(per_class):
                (folder / f"{k}.png").write_bytes(image_of(label, 10 * number + k))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubCache]:
    """Prepared data, and an empty hub cache, for all tests of this module."""
    root = tmp_path_factory.mktemp("clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APGD_CACHE", str(root / "apgd"))
        for name, dataset in small_datasets().items():
            prepare(dataset, image_folder(root / "copies" / name, dataset))
        yield offline_cache(root / "hub", patch)


def publish_base(cache: HubCache, geometry: Geometry) -> dict[str, torch.Tensor]:
    """A base with random weights, as OpenAI's repository holds it."""
    torch.manual_seed(0)
    state = transformers_clip(geometry).state_dict()
    save_file(dict(state), cache.snapshot(geometry.hub_id) / "model.safetensors")
    return dict(state)


def publish_expert(cache: HubCache, repository: str, geometry: Geometry, seed: int) -> None:
    """An expert as FusionBench published them: a CLIPVisionModel's names with prefix, in float16.

    It differs from the base by noise, like fine-tuning does.
    """
    torch.manual_seed(0)
    base = transformers_clip(geometry).vision_model.state_dict()
    rng = torch.Generator().manual_seed(seed)
    tuned = {
        f"vision_model.{name}": (t + 1e-3 * torch.randn(t.shape, generator=rng)).half()
        for name, t in base.items()
        if t.is_floating_point()
    }
    folder = cache.snapshot(repository)
    save_file(tuned, folder / "model.safetensors")
    config = CLIPVisionModel(vision_config(geometry)).config
    config.save_pretrained(folder)


def suite_of(geometry: Geometry, **changes: object) -> ClipSuite:
    arguments: dict[str, object] = {"tasks": SEEN, "unseen": UNSEEN, "corrupted": ("eurosat",)}
    return ClipSuite(
        f"small_{geometry.name}", "reduced", geometry, datasets=small_datasets(),
        **(arguments | changes),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32",
        pytest.param("ViT-B-16", marks=[pytest.mark.slow, pytest.mark.soak]),
        pytest.param("ViT-L-14", marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
)
def test_whole_path_with_own_experts(
    name: str, cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow(name)
    publish_base(cache, geometry)
    report, rows = run_whole_path(suite_of(geometry), tmp_path, monkeypatch)
    assert len(rows) == 5  # pretrained, experts, averaging, Ties published and tuned
    cells = set(rows[0].scores)
    assert cells >= {"test/eurosat", "test/mnist", "test/svhn", "jpeg_compression/eurosat"}
    assert "smoke" in report.compared
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    corrupted = set(manifest["hashes"]["data"]) - {f"{t}/{s}" for t in TASKS for s in Split}
    assert corrupted == {f"eurosat/{kind}" for kind in suite_of(geometry).corruptions}
    assert "reduced" in report.markdown


@pytest.mark.slow
def test_whole_path_with_published_experts(
    cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow("ViT-B-32")
    base = publish_base(cache, geometry)
    suite = suite_of(geometry)
    for seed, repository in enumerate(suite.published_experts.values()):
        publish_expert(cache, repository, geometry, seed)
    _, rows = run_whole_path(suite, tmp_path, monkeypatch, experts="published")
    assert {row.method for row in rows} == {"pretrained", "experts", "weight_averaging", "ties"}
    (folder,) = (tmp_path / "experts").glob("clip-ViT-B-32-mnist-published-*")
    stored = load_file(folder / "weights.safetensors")
    assert stored.keys() == suite.build_model().state_dict().keys()
    torch.testing.assert_close(stored["visual_projection.weight"], base["visual_projection.weight"])
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.soak
def test_references_that_are_no_merges(
    cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow("ViT-B-32")
    publish_base(cache, geometry)
    suite = suite_of(geometry)
    asked = ("experts", "multi_task", "ensemble")
    report, rows = run_whole_path(suite, tmp_path / "own", monkeypatch, references=asked)
    found = {row.method: row for row in rows if row.variant is Variant.REFERENCE}
    assert set(found) == set(asked)
    cells = set(found["multi_task"].scores)
    assert cells == set(found["ensemble"].scores)
    assert cells == {row.method: set(row.scores) for row in rows}["ties"]  # unseen, corrupted
    assert set(found["experts"].scores) < cells
    assert all(row.details["reads"].keys() == {"test"} for row in found.values())
    # The score of the multi-task model depends on its weights, those of the others do not.
    assert set(found["multi_task"].inputs) - set(found["ensemble"].inputs) == {"weights"}
    main = [row.cells[0].text for row in report.tables["main"].rows]
    assert main[:3] == ["Single experts", "Multi-task training", "Ensemble of experts"]
    assert "Lines: solid: single experts; dashed: multi-task training" in report.markdown
    learned = {row.cells[0].text: row.cells[2].text for row in report.tables["experts"].rows}
    assert learned["Multi-task training"] == str(6 * len(SEEN))
    manifest = json.loads((tmp_path / "own" / "run" / "manifest.json").read_text())
    assert "multi_task-seed0" in manifest["hashes"]["experts"]
    assert manifest["results"]["ensemble-reference"] <= 1

    # Beside experts from elsewhere the multi-task model is fine-tuned here, and is the same.
    for seed, repository in enumerate(suite.published_experts.values()):
        publish_expert(cache, repository, geometry, seed)
    _, others = run_whole_path(
        suite, tmp_path / "published", monkeypatch, experts="published", references=asked
    )
    again = next(row for row in others if row.method == "multi_task")
    assert again.inputs["weights"] == found["multi_task"].inputs["weights"]
    assert again.scores == found["multi_task"].scores
    described = json.loads((tmp_path / "published" / "run" / "manifest.json").read_text())
    assert described["experts_family"] == "transformers"


def test_an_expert_of_another_model_is_refused(
    cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow("ViT-B-32")
    publish_base(cache, geometry)
    suite = suite_of(geometry)
    for repository in suite.published_experts.values():
        publish_expert(cache, repository, shallow("ViT-B-16"), 0)
    with pytest.raises(InputError, match="ViT-B-32"):
        run_whole_path(suite, tmp_path, monkeypatch, experts="published")


def test_heads_are_computed_once_and_are_scaled_unit_vectors(cache: HubCache) -> None:
    geometry = shallow("ViT-B-32")
    base = publish_base(cache, geometry)
    suite = suite_of(geometry)
    model = suite.build_model()
    first = suite.head(model, suite.task("eurosat")).classes
    assert first.shape == (10, 512)
    scale = base["logit_scale"].exp()
    torch.testing.assert_close(first.norm(dim=1), scale.expand(10))
    again = suite.head(model, suite.task("eurosat")).classes
    assert torch.equal(first, again)


def test_what_is_missing_is_said_before_anything_starts(
    cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = replace(shallow("ViT-B-32"), hub_id="nobody/nothing")
    with pytest.raises(InputError, match="nobody/nothing.*hf download"):
        run_whole_path(suite_of(geometry), tmp_path, monkeypatch)
    assert cache.root.exists()


def test_every_suite_is_complete() -> None:
    names = [suite.name for suite in CLIP_SUITES]
    assert len(names) == 16
    for suite in CLIP_SUITES:
        assert suites[suite.name] is suite
        assert set(suite.published_experts) == {task.name for task in suite.tasks}
        for task in (*suite.tasks, *suite.unseen):
            assert task.class_names
            assert all(template.count("{}") == 1 for template in task.templates)
    assert [len(suites[f"clip_vit_l14_{n}"].tasks) for n in (8, 14, 20)] == [8, 14, 20]


@pytest.mark.parametrize("suite", CLIP_SUITES, ids=lambda suite: suite.name)
def test_published_rows_speak_of_the_suites_tasks(suite: ClipSuite) -> None:
    protocol = "unseen" if suite.unseen else IN_DOMAIN
    known = {task.name for task in (*suite.tasks, *suite.unseen)} | {"emnist_digits"}
    for row in published_rows(suite.name, protocol):
        assert set(row.per_task or ()) <= known
        if row.family is Family.TRANSFORMERS and row.per_task and row.method == "pretrained":
            assert len(row.per_task) == len(known) - 1


def test_train_and_validation_share_no_image(cache: HubCache) -> None:
    geometry = shallow("ViT-B-32")
    suite = suite_of(geometry)
    seen = {
        split: {image.tobytes() for image in suite.examples("eurosat", split).images[:]}
        for split in Split
    }
    assert not seen[Split.TRAIN] & seen[Split.VALIDATION]
    assert not seen[Split.TRAIN] & seen[Split.TEST]
    assert cache.root.exists()
