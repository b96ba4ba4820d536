"""The one form in which every origin gives its rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import datasets
import numpy as np
import pyarrow as pa

BATCH = 256
"""Rows that are in memory at a time."""


@dataclass(frozen=True)
class SourceSplit:
    """The rows of one split, not yet looked at."""

    rows: int
    """How many there are."""
    features: datasets.Features
    """Name and kind of every column."""
    batches: Callable[[], Iterator[pa.Table]]
    """Reads the rows in order; images stay encoded."""

    def only(self, chosen: np.ndarray) -> "SourceSplit":
        """The rows where `chosen`, bool (rows,), is true, in the same order."""

        def batches() -> Iterator[pa.Table]:
            start = 0
            for table in self.batches():
                yield table.filter(pa.array(chosen[start : start + len(table)]))
                start += len(table)

        return SourceSplit(int(chosen.sum()), self.features, batches)


class Origin(Protocol):
    """Something that has the splits of a data set."""

    def split(self, name: str) -> SourceSplit:
        """The rows of the split that the data set itself calls `name`."""

    def describe(self) -> Mapping[str, str | None]:
        """What is recorded about it."""


def from_dataset(dataset: datasets.Dataset) -> SourceSplit:
    """The rows of an opened data set, images undecoded."""
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))

    def batches() -> Iterator[pa.Table]:
        yield from dataset.with_format("arrow").iter(batch_size=BATCH)

    return SourceSplit(len(dataset), dataset.features, batches)
