"""Examples of prepared data sets, by our splits."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from apgd.data.holdout import split_rows
from apgd.data.hub import LABEL, HubDataset
from apgd.data.pixel_cache import cached, is_cached
from apgd.data.pixels import EncodedImages, Recipe
from apgd.data.prepared import PreparedSplit, is_prepared, open_prepared
from apgd.data.tasks import Split
from apgd.errors import InputError
from apgd.source import source_hash


@dataclass(frozen=True)
class PreparedImages:
    """Images with labels."""

    images: np.ndarray | EncodedImages
    """uint8 (examples, size, size, 3): a memory map, or decoded whenever they are indexed."""
    labels: np.ndarray
    """int64, (examples,)."""
    sha256: str
    """Identifies the examples: content, order, and how images are made of them."""


@dataclass(frozen=True)
class PreparedTexts:
    """Texts with labels."""

    texts: tuple[tuple[str, ...], ...]
    """(examples, text columns), the columns in the order of `HubDataset.text_columns`."""
    labels: np.ndarray
    """(examples,), int64 classes, or float64 numbers."""
    sha256: str
    """Identifies the examples: content and order."""


def image_examples(
    dataset: HubDataset,
    split: Split,
    *,
    size: int,
    recipe: Recipe = Recipe.TRANSFORMERS,
    corruption: str | None = None,
    keep_pixels: bool | None = None,
    threads: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> PreparedImages:
    """The examples of a prepared image data set.

    Args:
        dataset: one with images.
        split: TRAIN and VALIDATION are parts of the data set's train split (see `split_rows`), TEST
            is its test split.
        size: pixels per side.
        recipe: whose preprocessing is followed.
        corruption: the test images under this corruption instead; only with TEST.
        keep_pixels: decode once into a memory-mapped file, instead of at every reading; where None,
            VALIDATION and TEST are kept and TRAIN is not.
        threads: how many decode at once.
        report: called with the images decoded into that file and their total.

    Raises:
        InputError: where the data set is not prepared or has no such split, or an image cannot be
            decoded.
    """
    if dataset.image_column is None:
        raise InputError(f"data set {dataset.name} must have images, but has texts")
    source = _source(dataset, split, corruption)
    rows = split_rows(split, source.rows)
    images = EncodedImages(source, rows, size, recipe, threads)
    keep = split is not Split.TRAIN if keep_pixels is None else keep_pixels
    return PreparedImages(
        cached(images, report) if keep else images,
        source.labels[rows],
        _identity(source, rows, [size, recipe, source_hash("apgd.data.pixels")]),
    )


def text_examples(dataset: HubDataset, split: Split) -> PreparedTexts:
    """The examples of a prepared text data set; splits as in `image_examples`.

    Raises:
        InputError: where the data set is not prepared or has no such split.
    """
    if not dataset.text_columns:
        raise InputError(f"data set {dataset.name} must have texts, but has images")
    source = _source(dataset, split, None)
    rows = split_rows(split, source.rows)
    table = pq.read_table(source.path).take(rows)
    columns = [table[column].to_pylist() for column in dataset.text_columns]
    texts = tuple(zip(*columns, strict=True))
    return PreparedTexts(texts, table[LABEL].to_numpy(), _identity(source, rows, []))


def is_ready(
    dataset: HubDataset, split: Split, *, size: int, recipe: Recipe = Recipe.TRANSFORMERS
) -> bool:
    """Whether reading an image split is quick: it is prepared, and decoded where it is kept so."""
    dataset = dataset.without_corruptions()
    if not is_prepared(dataset):
        return False
    if split is Split.TRAIN:
        return True
    source = _source(dataset, split, None)
    return is_cached(EncodedImages(source, split_rows(split, source.rows), size, recipe))


def _source(dataset: HubDataset, split: Split, corruption: str | None) -> PreparedSplit:
    if corruption is not None:
        if split is not Split.TEST or corruption not in dataset.corruptions:
            known = ", ".join(dataset.corruptions) or "none"
            raise InputError(
                f"data set {dataset.name} has test images under the corruptions {known}, "
                f"but {corruption!r} was asked for with split {split}"
            )
        return open_prepared(dataset).splits[corruption]
    ours = Split.TEST if split is Split.TEST else Split.TRAIN
    if ours not in dataset.splits:
        raise InputError(f"data set {dataset.name} has no train split, so it has no {split} split")
    return open_prepared(dataset.without_corruptions()).splits[dataset.splits[ours]]


def _identity(source: PreparedSplit, rows: np.ndarray, made: list[object]) -> str:
    described = [source.content_sha256, hashlib.sha256(rows.tobytes()).hexdigest(), *made]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
