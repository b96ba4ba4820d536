"""Results as files: each is on disk before it is anything else.

A record is one JSON file, with the per-example correctness of its scores beside it. Its key is made
from everything that determines it, so a record that exists need not be computed again: that is how
a run resumes.
"""

import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from apgd.errors import DamagedError, InputError
from apgd.files import (
    atomic_path,
    content_key,
    put_aside,
    read_sealed,
    sha256_file,
    write_sealed,
)
from apgd.methods import Value

SHARED_SECONDS = 20.0
"""Shared storage shows a file of another machine's no later than this: it is to be mounted with
`lookupcache=positive`, without which NFS may take a minute."""


class Kind(StrEnum):
    """What a record is the result of."""

    EXPERT = "expert"
    """One expert was fine-tuned."""
    TRIAL = "trial"
    """One merge was scored on validation data during a search."""
    EVALUATION = "evaluation"
    """One row of the table was scored on test data."""


class Variant(StrEnum):
    """How a row of the table came by its parameters."""

    REFERENCE = "reference"
    """Not a merge, but what merges are measured against: see tune.references."""
    PUBLISHED = "published"
    """The method's published settings, which are the defaults of its parameters."""
    TUNED = "tuned"
    """The trial that is best on validation data by the search's first objective."""
    VARIED = "varied"
    """Published settings with some of them changed, as an ablation has it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One result."""

    kind: Kind
    method: str
    """Name of the merge method or of the reference row; for records of kind EXPERT the task's, or
    `multi_task`."""
    variant: Variant
    seed: int
    """Seed of the fine-tuning and of the search."""
    params: Mapping[str, Value]
    """The method's parameters, all of them."""
    inputs: Mapping[str, str]
    """What else determines the result: name -> hash."""
    scores: Mapping[str, float]
    """Score by cell, at most 1, for example accuracy; a cell is `condition/task`, where the
    condition is a split (`validation`, `test`) or the name of a corruption (of the test split)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time by step, for example `merge` and `score`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, JSON values only."""

    @property
    def key(self) -> str:
        """Content key of what determines this record."""
        return record_key(self.kind, self.method, self.seed, self.params, self.inputs, self.variant)


def record_key(
    kind: Kind,
    method: str,
    seed: int,
    params: Mapping[str, Value],
    inputs: Mapping[str, str],
    variant: Variant = Variant.TUNED,
) -> str:
    """The key that a record with these determinants has."""
    return content_key([kind, method, variant, seed, dict(params), dict(inputs)])


_ANSWERS = "answers_sha256"


class RecordStore:
    """The records of one run folder.

    Files: `records/<kind>/<key>.json` and, where there are per-example results,
    `records/<kind>/<key>.npz` with one array per cell, of packed bits for right and wrong. The hash
    of the latter is in the former, which has a hash of itself.
    """

    def __init__(self, run_dir: Path) -> None:
        self.root = run_dir / "records"

    def _path(self, kind: Kind, key: str) -> Path:
        return self.root / kind / f"{key}.json"

    def add(self, record: Record, answers: Mapping[str, np.ndarray] | None = None) -> None:
        """Write a record; `answers` maps cells to one boolean or number per example."""
        path = self._path(record.kind, record.key)
        fields = dict(vars(record))
        if answers:
            stored: dict[str, Any] = {}
            for cell, values in answers.items():
                if values.dtype == np.bool_:
                    stored[cell] = np.packbits(values)
                    stored[f"{cell}#"] = np.int64(len(values))
                else:
                    stored[cell] = values.astype(np.float64)
            with (
                atomic_path(path.with_suffix(".npz")) as temporary,
                temporary.open("wb") as file,
            ):
                np.savez_compressed(file, **stored)
            fields[_ANSWERS] = sha256_file(path.with_suffix(".npz"))
        write_sealed(path, fields)

    def add_again(self, record: Record, variant: Variant) -> Record:
        """Write a result under another variant whose parameters came out the same.

        Its `details` name the record that it repeats under `same_as`, and no reads of data.
        """
        details = {**record.details, "reads": {}, "same_as": record.key}
        again = replace(record, variant=variant, details=details)
        self.add(again, self.answers(record))
        return again

    def get(self, kind: Kind, key: str) -> Record | None:
        """The record with this key, or None where it was not computed yet."""
        path = self._path(kind, key)
        return _read(path) if path.exists() else None

    def get_whole(self, kind: Kind, key: str) -> Record | None:
        """As `get`, but None also where it, or what belongs to it, is not what was written."""
        path = self._path(kind, key)
        return None if path.exists() and any(True for _ in _damage(path)) else self.get(kind, key)

    def expect(self, kind: Kind, key: str) -> Record:
        """The record with this key, which somebody wrote, perhaps on another machine.

        Raises:
            FileNotFoundError: where it does not come.
        """
        until = time.monotonic() + SHARED_SECONDS
        while (record := self.get(kind, key)) is None and time.monotonic() < until:
            time.sleep(SHARED_SECONDS / 100)
        if record is None:
            raise FileNotFoundError(
                f"the record of {kind} {key} was written, but {self.root} does not have it; the "
                f"run folder must lie on storage that all machines share, and keep what is in it"
            )
        return record

    def keys(self, kind: Kind) -> list[str]:
        """The keys of every record of a kind, sorted."""
        return sorted(path.stem for path in (self.root / kind).glob("*.json"))

    def all(self, kind: Kind) -> Iterator[Record]:
        """Every record of a kind, in the order of their keys."""
        for key in self.keys(kind):
            yield _read(self._path(kind, key))

    def damaged(self) -> list[tuple[Path, DamagedError]]:
        """Files that are not what was written, and what is wrong with each."""
        return [(p, damage) for p in sorted(self.root.rglob("*.json")) for damage in _damage(p)]

    def put_damaged_aside(self) -> list[str]:
        """Rename what is not what was written, so that it is computed again; a sentence on each."""
        return [
            f"{damage}; it was put aside as {put_aside(path).name} and is computed again"
            for path, damage in self.damaged()
        ]

    def answers(self, record: Record) -> dict[str, np.ndarray]:
        """One boolean or number per example, by cell, in the order of the split.

        Raises:
            DamagedError: where their file is damaged.
        """
        path = self._path(record.kind, record.key).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {
                    cell: _unpacked(stored[cell], int(stored[f"{cell}#"]))
                    if f"{cell}#" in stored.files
                    else stored[cell]
                    for cell in stored.files
                    if not cell.endswith("#")
                }
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DamagedError(f"{path} must hold the answers of a record: {error}") from error


def _unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count).astype(bool)


def _damage(path: Path) -> Iterator[DamagedError]:
    """What is wrong with a file of results, or with the answers beside it, if anything is."""
    answers = path.with_suffix(".npz")
    try:
        expected = read_sealed(path).get(_ANSWERS)
    except DamagedError as error:
        yield error
        return
    if expected is not None:
        found = sha256_file(answers) if answers.exists() else "nothing"
        if found != expected:
            yield DamagedError(
                f"{answers} must have the hash {expected[:12]} that its record names, but has "
                f"{found[:12]}"
            )


def _read(path: Path) -> Record:
    fields = read_sealed(path)
    fields.pop(_ANSWERS, None)
    try:
        fields["kind"] = Kind(fields["kind"])
        fields["variant"] = Variant(fields["variant"])
        return Record(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a record of this version: {error}") from error
