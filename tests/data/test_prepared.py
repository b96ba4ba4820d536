import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from apgd.data import Split
from apgd.data.examples import image_examples, is_ready, text_examples
from apgd.data.holdout import split_rows
from apgd.data.hub import HubDataset
from apgd.data.origins import SourceSplit, class_names_in
from apgd.data.origins._rows import from_dataset
from apgd.data.prepared import folder_of, is_prepared, open_prepared, prepare, verify
from apgd.errors import InputError
from apgd.suites.facts import glue_datasets
from tests.data.real_columns import (
    CLASSES,
    FOLDERS,
    FORMS,
    GLUE_ROWS,
    encoded,
    glue_copy,
    image_dataset,
    opened,
    rows_of,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting:
    """An origin that writes down what it is asked for, in a file that processes share."""

    def __init__(self, log: Path, after: Callable[[str], None] = lambda _: None) -> None:
        self.log = log
        self.after = after

    def __call__(self, dataset: HubDataset, scratch: Path) -> "Counting":
        return self

    def split(self, name: str) -> SourceSplit:
        self.after(name)
        with self.log.open("a") as file:
            file.write(name + "\n")
        return from_dataset(opened(name))

    def describe(self) -> Mapping[str, str | None]:
        return {"kind": "counting"}

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "copy")
    prepared = prepare(image_dataset(), tmp_path / "copy")
    assert list(prepared.splits) == ["train", "test", "contrast"]
    for name, split in prepared.splits.items():
        table = pq.read_table(split.path)
        # The bytes as they came: encoding anew would cost quality.
        assert table["image"].to_pylist() == [image for image, _ in rows_of(name)]
        assert table["label"].to_pylist() == [label for _, label in rows_of(name)]
        assert split.rows == 12
        assert split.classes == 3
        content = b"".join(
            struct.pack("<qq", label, len(image)) + image for image, label in rows_of(name)
        )
        assert split.content_sha256 == hashlib.sha256(content).hexdigest()
        entry = prepared.manifest["splits"][name]
        assert entry["origin"] == {"kind": "local", "path": str(tmp_path / "copy")}
        assert set(entry["versions"]) == {"datasets", "huggingface_hub", "pyarrow", "pillow"}
    assert all(state.problem is None for state in verify(image_dataset()))


@pytest.mark.parametrize("task", GLUE_ROWS)
def test_glue(tmp_path: Path, task: str) -> None:
    dataset = dataclasses.replace(glue_datasets()[task], rows={})
    glue_copy(tmp_path, task, tuple(dataset.splits.values()))
    prepare(dataset, tmp_path)
    rows = {column: values * 5 for column, values in GLUE_ROWS[task].items()}
    count = len(rows["label"])
    for split in Split:
        examples = text_examples(dataset, split)
        chosen = split_rows(split, count)
        for text, label, row in zip(examples.texts, examples.labels, chosen, strict=True):
            assert text == tuple(rows[column][row] for column in dataset.text_columns)
            assert label == pytest.approx(rows["label"][row], abs=1e-6)
    assert examples.labels.dtype == (np.float64 if task == "stsb" else np.int64)


def test_validation_is_a_part_of_train_and_images_follow_their_labels(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "copy")
    prepare(image_dataset(), tmp_path / "copy")
    found = {
        split: image_examples(image_dataset(), split, size=32, keep_pixels=False) for split in Split
    }
    assert [len(found[split].labels) for split in Split] == [11, 1, 12]
    for split, name in ((Split.TRAIN, "train"), (Split.VALIDATION, "train"), (Split.TEST, "test")):
        for k, row in enumerate(split_rows(split, 12)):
            image, label = rows_of(name)[row]
            with Image.open(io.BytesIO(image)) as whole:
                expected = np.asarray(whole)[:, 4:36]
            np.testing.assert_array_equal(found[split].images[k], expected)
            assert found[split].labels[k] == label
    assert len({examples.sha256 for examples in found.values()}) == 3


def test_corruptions_keep_the_order_of_the_test_split(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "copy")
    prepare(image_dataset(), tmp_path / "copy")
    clean = image_examples(image_dataset(), Split.TEST, size=16)
    spoiled = image_examples(image_dataset(), Split.TEST, size=16, corruption="contrast")
    np.testing.assert_array_equal(spoiled.labels, clean.labels)
    assert not np.array_equal(spoiled.images, clean.images)
    for corruption, split in (("fog", Split.TEST), ("contrast", Split.VALIDATION)):
        with pytest.raises(InputError, match="under the corruptions contrast"):
            image_examples(image_dataset(), split, size=16, corruption=corruption)


def test_corruptions_are_needed_only_where_they_are_read(tmp_path: Path) -> None:
    FORMS["image folder"](tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "contrast")
    with pytest.raises(InputError, match="must hold split 'contrast'"):
        prepare(image_dataset(), tmp_path / "copy")
    prepare(image_dataset().without_corruptions(), tmp_path / "copy")
    assert len(image_examples(image_dataset(), Split.TEST, size=16).labels) == 12
    assert is_ready(image_dataset(), Split.TEST, size=16)
    with pytest.raises(InputError, match="lacks contrast"):
        image_examples(image_dataset(), Split.TEST, size=16, corruption="contrast")


def test_prepared_once(tmp_path: Path) -> None:
    hub = Counting(tmp_path / "log")
    first = prepare(image_dataset(), open_hub=hub)
    assert prepare(image_dataset(), open_hub=hub) == first
    assert prepare(image_dataset(), open_hub=hub, thorough=True) == first
    assert hub.asked == ["train", "test", "contrast"]


def test_a_split_added_later_is_fetched_alone(tmp_path: Path) -> None:
    hub = Counting(tmp_path / "log")
    prepare(image_dataset(corruptions=()), open_hub=hub)
    assert not is_prepared(image_dataset())
    prepare(image_dataset(), open_hub=hub)
    assert hub.asked == ["train", "test", "contrast"]


def _killed_at(split: str) -> Callable[[str], None]:
    def kill(name: str) -> None:
        if name == split:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _prepare(hub: Counting) -> None:
    prepare(image_dataset(), open_hub=hub)


def test_killed_between_splits_then_resumed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_prepare, args=(Counting(tmp_path / "a", _killed_at("test")),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(InputError, match="lacks test, contrast"):
        open_prepared(image_dataset())
    folder = folder_of(image_dataset())
    (folder / ".test.parquet.abc.part").write_bytes(b"what the killed one was writing")
    (folder / "scratch").mkdir()
    hub = Counting(tmp_path / "b")
    prepare(image_dataset(), open_hub=hub)
    assert hub.asked == ["test", "contrast"]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "contrast.parquet", "manifest.json", "test.parquet", "train.parquet",
    ]  # fmt: skip


def test_two_processes_at_once(tmp_path: Path) -> None:
    hub = Counting(tmp_path / "log", lambda _: time.sleep(0.1))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_prepare, args=(hub,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert hub.asked == ["train", "test", "contrast"]
    assert all(state.problem is None for state in verify(image_dataset()))


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damage_is_found_and_only_that_is_fetched_again(tmp_path: Path, damage: str) -> None:
    hub = Counting(tmp_path / "log")
    before = prepare(image_dataset(), open_hub=hub)
    path = before.splits["test"].path
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    problems = {state.name: state.problem for state in verify(image_dataset())}
    assert problems["train"] is problems["contrast"] is None
    assert problems["test"] is not None
    assert "test.parquet" in problems["test"]
    after = prepare(image_dataset(), open_hub=hub, thorough=True)
    assert hub.asked == ["train", "test", "contrast", "test"]
    assert path.read_bytes() == content
    assert after.splits == before.splits


@pytest.mark.parametrize("text", ["", "{", "[]", '{"splits": {"train": {}}}'])
def test_a_damaged_manifest_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    hub = Counting(tmp_path / "log")
    folder = prepare(image_dataset(), open_hub=hub).folder
    (folder / "manifest.json").write_text(text)
    assert [state.problem for state in verify(image_dataset())] == ["not prepared"] * 3
    prepare(image_dataset(), open_hub=hub)
    assert len(hub.asked) == 6


def test_not_prepared_says_how(cache: Path) -> None:
    with pytest.raises(InputError, match="apgd data prepare SUITE --task land"):
        image_examples(image_dataset(), Split.TEST, size=8)


def bad_copy(root: Path, rows: list[dict[str, Any]], **features: Any) -> Path:
    import datasets

    kinds = datasets.Features({"image": datasets.Value("binary")} | features)
    root.mkdir()
    for split in ("train", "test", "contrast"):
        datasets.Dataset.from_list(rows, features=kinds).to_parquet(root / f"{split}.parquet")
    return root


@pytest.mark.parametrize("label", [3, -1, None, "glacier"])
def test_a_label_out_of_range(tmp_path: Path, label: object) -> None:
    import datasets

    kind = datasets.Value("string" if isinstance(label, str) else "int64")
    good = "forest" if isinstance(label, str) else 1
    rows = [{"image": encoded(0), "label": good}, {"image": encoded(1), "label": label}]
    copy = bad_copy(tmp_path / "copy", rows, label=kind)
    with pytest.raises(InputError) as caught:
        prepare(image_dataset(), copy)
    message = str(caught.value)
    assert "split 'train' of data set land must be classes 0 to 2" in message
    assert f"row 1 has {label!r}" in message
    assert not list(folder_of(image_dataset()).glob("*.parquet"))


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["Forest", "AnnualCropLand", "river"], "label 0 .* must mean 'annual crop land'"),
        (["AnnualCropLand", "Forest"], "must have 3 classes, but its label column has 2"),
    ],
)
def test_other_class_names(tmp_path: Path, names: list[str], rule: str) -> None:
    import datasets

    rows = [{"image": encoded(0), "label": 1}]
    copy = bad_copy(tmp_path / "copy", rows, label=datasets.ClassLabel(names=names))
    with pytest.raises(InputError, match=rule):
        prepare(image_dataset(), copy)


def test_class_names_that_say_something_else_are_recorded(tmp_path: Path) -> None:
    # Hub data sets often name classes 0, 1, 2 or in another language; that contradicts nothing.
    import datasets

    rows = [{"image": encoded(0), "label": i} for i in range(3)]
    kind = datasets.ClassLabel(names=["n01", "n02", "n03"])
    copy = bad_copy(tmp_path / "copy", rows, label=kind)
    prepared = prepare(image_dataset(), copy)
    assert prepared.manifest["splits"]["test"]["class_names"] == ["n01", "n02", "n03"]


def test_folders_named_by_numbers_are_labels(tmp_path: Path) -> None:
    for split in ("train", "test", "contrast"):
        for label in (2, 0):
            folder = tmp_path / "copy" / split / f"{label:05d}"
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(encoded(label, kind="PNG"))
    prepared = prepare(image_dataset(), tmp_path / "copy")
    assert prepared.splits["train"].labels.tolist() == [0, 2]


def test_a_folder_of_an_unknown_class(tmp_path: Path) -> None:
    FORMS["image folder"](tmp_path / "copy")
    (tmp_path / "copy" / "test" / FOLDERS[1]).rename(tmp_path / "copy" / "test" / "Glacier")
    with pytest.raises(InputError, match=r"split 'test'.*'Glacier'"):
        prepare(image_dataset(), tmp_path / "copy")
    assert verify(image_dataset())[0].problem is None  # what was good is kept


def test_other_row_counts(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "copy")
    pinned = image_dataset(rows={"train": 12, "test": 13})
    with pytest.raises(InputError, match=r"split 'test'.*must have 13 rows, but has 12"):
        prepare(pinned, tmp_path / "copy")
    prepare(image_dataset(), tmp_path / "copy")
    with pytest.raises(InputError, match=r"must have 13 rows"):
        open_prepared(pinned)
    assert "13 rows" in (verify(pinned)[1].problem or "")


def test_a_missing_column_and_known_other_names(tmp_path: Path) -> None:
    import datasets

    rows = [{"image": encoded(0), "etikett": 1}]
    copy = bad_copy(tmp_path / "copy", rows, etikett=datasets.Value("int64"))
    with pytest.raises(InputError, match="must have a column 'label', but has image, etikett"):
        prepare(image_dataset(), copy)
    rows = [{"image": encoded(0), "cls": 1}]
    copy = bad_copy(tmp_path / "webdataset", rows, cls=datasets.Value("int64"))
    prepared = prepare(image_dataset(), copy)
    assert prepared.manifest["splits"]["test"]["columns"] == {"image": "image", "label": "cls"}


@pytest.mark.parametrize("content", [b"", None, b"no image at all"])
def test_what_is_no_image(tmp_path: Path, content: bytes | None) -> None:
    import datasets

    rows = [{"image": encoded(0), "label": 1}, {"image": content, "label": 1}]
    copy = bad_copy(tmp_path / "copy", rows, label=datasets.Value("int64"))
    with pytest.raises(InputError, match=r"row 1 of split 'train'.*must hold an image"):
        prepare(image_dataset(), copy)


@pytest.mark.parametrize("value", [-0.1, 5.1, None])
def test_a_number_out_of_range(tmp_path: Path, value: float | None) -> None:
    import datasets

    dataset = dataclasses.replace(glue_datasets()["stsb"], rows={}, config=None)
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, value]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"must be in \[0, 5\], but row 1"):
        prepare(dataset, tmp_path)


def test_missing_text(tmp_path: Path) -> None:
    import datasets

    dataset = dataclasses.replace(glue_datasets()["cola"], rows={})
    rows = {"sentence": ["a", None], "label": [1, 0]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="row 1 has None"):
        prepare(dataset, tmp_path)


def test_a_copy_without_the_split_lists_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "copy" / "training").mkdir(parents=True)
    with pytest.raises(InputError, match=r"must hold split 'train'.*but has training"):
        prepare(image_dataset(), tmp_path / "copy")
    with pytest.raises(InputError, match="must exist"):
        prepare(image_dataset(), tmp_path / "nowhere")


def test_a_series_with_a_missing_file(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "copy")
    (tmp_path / "copy" / "data" / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="must hold all 2 files"):
        prepare(image_dataset(), tmp_path / "copy")


def own(source: Path, **changes: Any) -> HubDataset:
    names = class_names_in(source)
    return image_dataset(hub_id=None, local=source, class_names=names, corruptions=(), **changes)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_own_data_in_one_pool(tmp_path: Path, form: str) -> None:
    source = tmp_path / "birds"
    if form == "folder":
        for i, (image, label) in enumerate(rows_of("train", 20)):
            folder = source / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:03d}.jpg").write_bytes(image)
    else:
        source = tmp_path / "birds.parquet"
        opened("train", 20).to_parquet(source)
    dataset = own(source)
    assert dataset.class_names == (CLASSES if form == "folder" else FOLDERS)
    prepared = prepare(dataset)
    parts = {name: pq.read_table(split.path)["image"] for name, split in prepared.splits.items()}
    train, test = (set(parts[name].to_pylist()) for name in ("train", "test"))
    assert (len(train), len(test)) == (48, 12)
    assert train | test == {image for image, _ in rows_of("train", 20)}
    assert not train & test


def test_changed_own_data_are_other_data(tmp_path: Path) -> None:
    source = tmp_path / "birds"
    for name in CLASSES:
        (source / name).mkdir(parents=True)
        for i in range(5):
            (source / name / f"{i}.jpg").write_bytes(encoded(i))
    first = prepare(own(source))
    (source / CLASSES[0] / "9.jpg").write_bytes(encoded(9))
    second = prepare(own(source))
    assert second.folder != first.folder
    assert sum(s.rows for s in second.splits.values()) == 16
    assert sum(s.rows for s in first.splits.values()) == 15


def test_a_public_data_set_is_never_divided_by_us(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(encoded(0))
    with pytest.raises(InputError, match="must hold split 'train'"):
        prepare(image_dataset(), tmp_path)


def test_class_names_of_a_file_without_names(tmp_path: Path) -> None:
    import datasets

    for values, names in (([0, 2, 1], ("0", "1", "2")), (["b", "a"], ("a", "b"))):
        path = tmp_path / "x.parquet"
        datasets.Dataset.from_dict({"label": values}).to_parquet(path)
        assert class_names_in(path) == names
    with pytest.raises(InputError, match="a folder per class"):
        class_names_in(tmp_path / "nothing")
    with pytest.raises(InputError, match="must have a column 'kind'"):
        class_names_in(path, "kind")


def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="APGD_CACHE"):
        prepare(image_dataset(), open_hub=Counting(tmp_path / "log"))


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    hub = Counting(tmp_path / "log")
    prepare(image_dataset(), open_hub=hub, report=lambda *what: told.append(what))
    assert told == [("train", 12, 12), ("test", 12, 12), ("contrast", 12, 12)]


def test_the_manifest_is_complete(tmp_path: Path) -> None:
    prepared = prepare(image_dataset(), open_hub=Counting(tmp_path / "log"))
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest == prepared.manifest
    assert manifest["dataset"] == {
        "name": "land", "hub_id": "someone/land", "config": None, "revision": None,
    }  # fmt: skip
    assert set(manifest["splits"]["train"]) == {
        "rows", "classes", "class_names", "columns", "content_sha256", "file", "bytes", "sha256",
        "origin", "versions",
    }  # fmt: skip
