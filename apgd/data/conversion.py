"""One split from its origin to a checked Parquet file."""

import hashlib
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from apgd.data.hub import IMAGE, LABEL, HubDataset
from apgd.data.origins import SourceSplit
from apgd.errors import InputError

_GROUP_ROWS = 64  # of images; a row read at random costs reading its group
_GROUP_BYTES = 1 << 20
_TEXT_GROUP_ROWS = 8192
_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "fine_label", "cls")


@dataclass(frozen=True)
class Converted:
    """What was written, for the manifest."""

    rows: int
    classes: int | None
    """How many classes occur; None where labels are no classes."""
    class_names: tuple[str, ...] | None
    """What the origin calls its labels, where it says."""
    columns: dict[str, str]
    """The origin's column for each of ours."""
    content_sha256: str
    """Over labels and contents in order, whatever the file format's version."""


def convert(
    dataset: HubDataset,
    name: str,
    source: SourceSplit,
    path: Path,
    report: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write a split as Parquet, checking columns, labels, class names, images and row count.

    Args:
        dataset: what the split must look like.
        name: the split, by the data set's own name.
        source: its rows.
        path: the file to write.
        report: called with the rows done and their total.

    Raises:
        InputError: where the split is not what `dataset` says, or holds something unreadable.
    """
    where = f"split {name!r} of data set {dataset.name}"
    expected = dataset.rows.get(name)
    if source.rows == 0 or expected not in (None, source.rows):
        raise InputError(f"{where} must have {expected or 'some'} rows, but has {source.rows}")
    columns = _columns(dataset, source.features, where)
    labels = _Labels(dataset, source.features[columns[LABEL]], where)
    digest = hashlib.sha256()
    seen: set[int] = set()
    done = 0
    with _Writer(path, _schema(dataset)) as writer:
        for table in source.batches():
            values = labels.of(table[columns[LABEL]].to_pylist(), done)
            seen.update(values.astype(int) if dataset.classes is not None else ())
            if dataset.image_column is not None:
                images = _encoded(table[columns[IMAGE]], where, done)
                for label, image in zip(values, images, strict=True):
                    digest.update(struct.pack("<qq", label, len(image)))
                    digest.update(image)
                    writer.add([image, int(label)], len(image))
            else:
                texts = [_texts(table[columns[c]], c, where, done) for c in dataset.text_columns]
                for label, *row in zip(values, *texts, strict=True):
                    coded = [text.encode() for text in row]
                    digest.update(struct.pack("<d", label))
                    for text in coded:
                        digest.update(struct.pack("<q", len(text)) + text)
                    writer.add([*row, label.item()], 0)
            done += len(values)
            if report is not None:
                report(done, source.rows)
    if done != source.rows:
        raise InputError(f"{where} must have {source.rows} rows, but only {done} could be read")
    return Converted(
        rows=done,
        classes=None if dataset.classes is None else len(seen),
        class_names=labels.names,
        columns=columns,
        content_sha256=digest.hexdigest(),
    )


def normalised(name: str) -> str:
    """A class name without what data sets spell differently: case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


class _Labels:
    """From the origin's labels to ours."""

    def __init__(self, dataset: HubDataset, feature: Any, where: str) -> None:
        self._dataset = dataset
        self._where = where
        self.names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        if self.names is not None:
            self._check_names(self.names)
        self._index: dict[str, int] = {}
        for i, known in enumerate(dataset.class_names or ()):
            self._index.setdefault(normalised(known), i)

    def of(self, values: Sequence[Any], start: int) -> np.ndarray:  # int64 or float64, (rows,)
        """Our labels of some rows, the first of which is row `start`."""
        if self._dataset.label_range is not None:
            low, high = self._dataset.label_range
            for i, value in enumerate(values):
                if not isinstance(value, int | float) or not low <= value <= high:
                    raise InputError(f"labels of {self._where} must be in [{low:g}, {high:g}], "
                                     f"but row {start + i} has {value!r}")  # fmt: skip
            return np.array(values, dtype=np.float64)
        classes = len(self._dataset.class_names or ())
        found = np.empty(len(values), dtype=np.int64)
        for i, value in enumerate(values):
            label = self._named(value) if isinstance(value, str) else value
            if not isinstance(label, int) or not 0 <= label < classes:
                raise InputError(
                    f"labels of {self._where} must be classes 0 to {classes - 1} or their names, "
                    f"but row {start + i} has {value!r}"
                )
            found[i] = label
        return found

    def _named(self, name: str) -> int | None:
        # A number is a label, unless the classes themselves are named by numbers.
        known = self._index.get(normalised(name))
        if known is None and name.isascii() and name.isdigit():
            return int(name)
        return known

    def _check_names(self, names: Sequence[str]) -> None:
        """Refuse another number of classes, and names known to belong to another label."""
        ours = self._dataset.class_names
        if ours is None:
            raise InputError(f"labels of {self._where} must be numbers, but are classes")
        if len(names) != len(ours):
            raise InputError(
                f"{self._where} must have {len(ours)} classes, but its label column has "
                f"{len(names)}"
            )
        places = {normalised(name): i for i, name in enumerate(ours)}
        for i, name in enumerate(names):
            other = places.get(normalised(name))
            if other is not None and normalised(ours[i]) != normalised(name):
                raise InputError(
                    f"label {i} of {self._where} must mean {ours[i]!r}, but the data set calls it "
                    f"{name!r}, which is label {other}"
                )


def _columns(dataset: HubDataset, features: datasets.Features, where: str) -> dict[str, str]:
    """The origin's name of each of our columns."""
    wanted: dict[str, tuple[str, ...]] = {c: (c,) for c in dataset.text_columns}
    if dataset.image_column is not None:
        wanted[IMAGE] = (dataset.image_column, *_IMAGE_NAMES)
    wanted[LABEL] = (dataset.label_column, *_LABEL_NAMES)
    found = {}
    for ours, candidates in wanted.items():
        there = [name for name in candidates if name in features]
        if not there:
            raise InputError(
                f"{where} must have a column {candidates[0]!r}, but has {', '.join(features)}"
            )
        found[ours] = there[0]
    return found


def _encoded(column: pa.ChunkedArray, where: str, start: int) -> list[bytes]:
    """The images' bytes, each known by its header to be an image."""
    images = []
    for i, value in enumerate(column.to_pylist()):
        content = value
        if isinstance(value, dict):
            content = value.get("bytes")
            if content is None and value.get("path"):
                file = Path(value["path"])
                content = file.read_bytes() if file.is_file() else None
        if not isinstance(content, bytes) or not content:
            raise InputError(f"row {start + i} of {where} must hold an image, but holds nothing")
        try:
            Image.open(io.BytesIO(content)).close()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"row {start + i} of {where} must hold an image, but: "
                f"{str(error).replace(chr(10), ' ')[:120]}"
            ) from error
        images.append(content)
    return images


def _texts(column: pa.ChunkedArray, name: str, where: str, start: int) -> list[str]:
    texts: list[str] = column.to_pylist()
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"column {name!r} of {where} must hold text, but row {start + i} has {text!r}"
            )
    return texts


def _schema(dataset: HubDataset) -> pa.Schema:
    label = pa.field(LABEL, pa.float64() if dataset.classes is None else pa.int64())
    if dataset.image_column is not None:
        return pa.schema([pa.field(IMAGE, pa.binary()), label])
    return pa.schema([*(pa.field(column, pa.string()) for column in dataset.text_columns), label])


class _Writer:
    """Rows into Parquet, in groups small enough to be read for the sake of one row."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._images = schema.field(0).type == pa.binary()
        self._group = _GROUP_ROWS if self._images else _TEXT_GROUP_ROWS
        self._rows: list[list[Any]] = []
        self._bytes = 0
        self._file = pq.ParquetWriter(
            path,
            schema,
            compression="none" if self._images else "zstd",
            use_dictionary=False,
            write_statistics=False,
        )

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._flush()
        self._file.close()

    def add(self, row: list[Any], size: int) -> None:
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) == self._group or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._bytes = [], 0
