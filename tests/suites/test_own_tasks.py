"""A user's own task joins a suite's: from a folder, a file or a description, on to the report."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from apgd import InputError
from apgd.data import Split
from apgd.external import ForeignExperts
from apgd.heads import judge
from apgd.models.clip_layouts import Library, from_canonical, library_layout
from apgd.suites import suites, with_tasks
from tests.hub_cache import offline_cache
from tests.suites.test_clip import publish_base, shallow, suite_of
from tests.suites.whole_path import run_whole_path

CLASSES = ("circle", "star", "traffic sign")


def draw(folder: Path, per_class: int = 20) -> Path:
    """Noise whose brightness is the class, in a folder per class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        for k in range(per_class):
            pixels = rng.integers(0, 60, (48, 50, 3)) + 80 * label
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{k}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    return draw(tmp_path / "pictures")


def test_a_folder_becomes_a_task_of_the_embedded_suite(pictures: Path) -> None:
    suite = suites[with_tasks("mini_vision", (f"brightness={pictures}",))]
    task = suite.task("brightness")
    assert task.class_names == CLASSES
    assert len(suite.tasks) == 9
    assert suite.stored_as == "mini_vision"
    sizes = {split: len(suite.examples("brightness", split)) for split in Split}
    assert sizes == {Split.TRAIN: 44, Split.VALIDATION: 4, Split.TEST: 12}
    assert suite.has_examples("brightness", Split.TEST)
    # Everything else is the suite's.
    assert suite.examples("signs", Split.VALIDATION).sha256 == (
        suites["mini_vision"].examples("signs", Split.VALIDATION).sha256
    )
    model = suite.build_model()
    right = judge(model, suite.head(model, task), suite.examples("brightness", Split.TEST))
    assert right.shape == (12,)
    assert suites[suite.name] is suite


def test_a_word_that_the_embedded_text_tower_cannot_read_is_named(pictures: Path) -> None:
    (pictures / "circle").rename(pictures / "giraffe")
    suite = suites[with_tasks("mini_vision", (f"animals={pictures}",))]
    with pytest.raises(InputError, match="'giraffe'"):
        suite.head(suite.build_model(), suite.task("animals"))


def test_a_description_gives_names_and_templates(pictures: Path) -> None:
    described = pictures.parent / "task.json"
    names = ["ring", "heart", "stop sign"]
    content = {"data": "pictures", "title": "Mine", "class_names": names, "templates": ["the {}"]}
    described.write_text(json.dumps(content))
    task = suites[with_tasks("mini_vision", (f"mine={described}",))].task("mine")
    assert (task.title, list(task.class_names), task.templates) == ("Mine", names, ("the {}",))


def test_a_parquet_file_becomes_a_task(tmp_path: Path, pictures: Path) -> None:
    files = sorted(pictures.rglob("*.png"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    labels = [CLASSES.index(file.parent.name.replace("_", " ")) for file in files]
    rows = {"image": [str(file) for file in files], "label": labels}
    path = tmp_path / "mine.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    suite = suites[with_tasks("mini_vision", (f"mine={path}",))]
    assert suite.task("mine").class_names == CLASSES
    labels_seen = np.bincount(suite.examples("mine", Split.TRAIN).labels)  # type: ignore[attr-defined]
    assert labels_seen.sum() == 44


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("mine", "NAME=PATH, but got 'mine'"),
        ("Mine=pictures", "lower-case"),
        ("mine=nowhere", "nowhere does not"),
        ("signs=pictures", "has a task 'signs'"),
        ("mine=pictures/circle/0.png", "folder per class"),
        ("mine=wrong.json", "the key data"),
        ("mine=few.json", "names 1"),
        ("mine=template.json", r"once, but got 'photo'"),
    ],
)
def test_bad_tasks_are_refused(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, task: str, said: str
) -> None:
    root = pictures.parent
    monkeypatch.chdir(root)
    for name, content in (
        ("wrong", {"path": "pictures"}),
        ("few", {"data": "pictures", "class_names": ["one"]}),
        ("template", {"data": "pictures", "templates": ["photo"]}),
    ):
        (root / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        _ = suites[with_tasks("mini_vision", (task,))]


def test_an_own_task_is_fine_tuned_merged_and_reported(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow("ViT-B-32")
    publish_base(offline_cache(tmp_path / "hub", monkeypatch), geometry)
    inner = suite_of(geometry, tasks=(), unseen=(), corrupted=())
    monkeypatch.setitem(suites._found(), inner.name, inner)
    spec = with_tasks(inner.name, (f"a={pictures}", f"b={pictures}"))
    report, rows = run_whole_path(suites[spec], tmp_path, monkeypatch)
    assert {cell for row in rows for cell in row.scores} == {"test/a", "test/b"}
    experts = [folder.name for folder in (tmp_path / "experts").iterdir()]
    assert sorted(name.split("-seed")[0] for name in experts) == [
        "clip-ViT-B-32-a", "clip-ViT-B-32-b",
    ]  # fmt: skip
    assert "A" in report.tables["main"].header


def test_experts_from_elsewhere_join_in_any_layout(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = shallow("ViT-B-32")
    base = publish_base(offline_cache(tmp_path / "hub", monkeypatch), geometry)
    inner = suite_of(geometry, tasks=("mnist",), unseen=(), corrupted=())
    monkeypatch.setitem(suites._found(), inner.name, inner)
    suite = suites[with_tasks(inner.name, (f"mine={pictures}",))]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    whole = from_canonical(base, library_layout(Library.OPEN_CLIP, geometry, text=True))
    for task in ("mine", "mnist"):
        save_file(whole, theirs / f"{task}.safetensors")
    expert = ForeignExperts(suite, str(theirs)).fetch("mine", tmp_path)
    assert load_file(expert.weights).keys() == suite.build_model().state_dict().keys()
    other = {name: tensor + 1 for name, tensor in base.items()}
    (stored,) = (tmp_path / "hub").rglob("model.safetensors")
    save_file(other, stored)
    again = ForeignExperts(suite, str(theirs)).fetch("mine", tmp_path)
    assert again.weights != expert.weights  # it was told how far it is from another base
    with pytest.raises(InputError, match="no published expert for mine"):
        ForeignExperts(suite, "published")
