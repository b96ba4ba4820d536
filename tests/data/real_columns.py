"""Small data sets with the columns of real ones, in every form in which a copy may lie on disk."""

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from apgd.data import Split
from apgd.data.hub import HubDataset

CLASSES = ("annual crop land", "forest", "river")
FOLDERS = ("AnnualCropLand", "Forest", "river")
"""The same classes as a data set's own folders may be spelled."""


def encoded(seed: int, size: tuple[int, int] = (40, 32), kind: str = "JPEG") -> bytes:
    """A picture of noise over a gradient, `size` being width and height."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, size[0])[None, :, None] + np.zeros((size[1], 1, 3))
    pixels = (ramp + rng.integers(0, 55, (size[1], size[0], 3))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def rows_of(split: str, per_class: int = 4) -> list[tuple[bytes, int]]:
    """Images and labels, sorted by class as class folders are."""
    start = 1000 * ("train", "test", "contrast").index(split)
    return [
        (encoded(start + label * per_class + i), label)
        for label in range(len(CLASSES))
        for i in range(per_class)
    ]


def image_dataset(**changes: object) -> HubDataset:
    """A data set of the hub with three classes and one corruption."""
    values: dict[str, object] = {
        "name": "land",
        "hub_id": "someone/land",
        "splits": {Split.TRAIN: "train", Split.TEST: "test"},
        "corruptions": ("contrast",),
        "image_column": "image",
        "class_names": CLASSES,
    }
    return HubDataset(**(values | changes))  # type: ignore[arg-type]


def opened(split: str, per_class: int = 4) -> datasets.Dataset:
    """A split as `load_dataset` gives it."""
    rows = rows_of(split, per_class)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(FOLDERS))}
    )
    table = {
        "image": [{"bytes": image, "path": None} for image, _ in rows],
        "label": [label for _, label in rows],
    }
    return datasets.Dataset.from_dict(table, features=features)


def _image_folder(root: Path) -> None:
    for split in ("train", "test", "contrast"):
        for i, (image, label) in enumerate(rows_of(split)):
            folder = root / split / FOLDERS[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:04d}.jpg").write_bytes(image)


def _parquet(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    for split in ("train", "test", "contrast"):
        whole = opened(split)
        for i in range(2):
            part = whole.shard(2, i, contiguous=True)
            part.to_parquet(root / "data" / f"{split}-{i:05d}-of-00002.parquet")


def _arrow(root: Path) -> None:
    _save_to_disk(root / "saved")
    for split in ("train", "test", "contrast"):
        (made,) = (root / "saved" / split).glob("*.arrow")
        made.rename(root / f"{split}.arrow")


def _save_to_disk(root: Path) -> None:
    parts = {split: opened(split) for split in ("train", "test", "contrast")}
    datasets.DatasetDict(parts).save_to_disk(root)


FORMS: dict[str, Callable[[Path], None]] = {
    "image folder": _image_folder,
    "parquet": _parquet,
    "arrow": _arrow,
    "save_to_disk": _save_to_disk,
}
"""Writers of a copy, by the name of the form."""

GLUE_ROWS = {
    "cola": {"sentence": ["They drank the pub.", "She slept."], "label": [0, 1]},
    "mnli": {
        "premise": ["A man sings.", "A dog runs.", "It rains."],
        "hypothesis": ["Someone sings.", "A dog is brown.", "It is dry."],
        "label": [0, 1, 2],
    },
    "qnli": {
        "question": ["Who?", "When?"], "sentence": ["Ann did.", "Ann did."], "label": [0, 1],
    },
    "stsb": {
        "sentence1": ["A man eats.", "A cat naps."], "sentence2": ["He eats.", "Rain falls."],
        "label": [4.6, 0.0],
    },
}  # fmt: skip
"""A few rows with the columns of GLUE's tasks."""


def glue_copy(root: Path, task: str, splits: tuple[str, ...], repeats: int = 5) -> None:
    """Write a GLUE task as the hub has it: a folder per configuration, indices beside the rows."""
    rows = {column: values * repeats for column, values in GLUE_ROWS[task].items()}
    rows["idx"] = list(range(len(rows["label"])))
    names = {"cola": ["unacceptable", "acceptable"], "qnli": ["entailment", "not_entailment"],
             "mnli": ["entailment", "neutral", "contradiction"]}.get(task)  # fmt: skip
    kinds = {
        column: datasets.Value("int32" if column == "idx" else "string") for column in rows
    } | {"label": datasets.ClassLabel(names=names) if names else datasets.Value("float32")}
    (root / task).mkdir(parents=True, exist_ok=True)
    for split in splits:
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        table.to_parquet(root / task / f"{split}-00000-of-00001.parquet")
