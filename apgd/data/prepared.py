"""Data sets on this machine: fetched once, checked, and kept as Parquet beside a manifest."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apgd.data.cache import cache_root
from apgd.data.hub import LABEL, HubDataset
from apgd.errors import InputError
from apgd.files import atomic_path, content_key, is_leftover, sha256_file, write_json
from apgd.locks import locked
from apgd.source import library_versions

if TYPE_CHECKING:
    from apgd.data.origins import Origin

_FORMAT = 1
_MANIFEST = "manifest.json"
_LIBRARIES = ("datasets", "huggingface_hub", "pyarrow", "pillow")

Report = Callable[[str, int, int], None]
"""Called with a split, the rows of it that are done, and how many it has."""
OpenHub = Callable[[HubDataset, Path], "Origin"]
"""Opens a data set on the hub, with a folder for intermediate copies."""


@dataclass(frozen=True)
class PreparedSplit:
    """One split of a data set, by the data set's own name for it."""

    path: Path
    """The Parquet file."""
    rows: int
    """How many rows it has."""
    classes: int | None
    """How many classes occur in it."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""
    content_sha256: str
    """Hash of labels and contents in order; the same for every way in which they were fetched."""

    @cached_property
    def labels(self) -> np.ndarray:  # int64, or float64 where labels are no classes, (rows,)
        """The labels of all rows."""
        labels: np.ndarray = pq.read_table(self.path, columns=[LABEL])[LABEL].to_numpy()
        return labels


@dataclass(frozen=True)
class Prepared:
    """A data set whose splits are on this machine."""

    folder: Path
    """Where they are."""
    manifest: Mapping[str, Any]
    """What was fetched, from where, and its hashes."""
    splits: Mapping[str, PreparedSplit]
    """By the data set's own names."""


@dataclass(frozen=True)
class SplitState:
    """What verifying found of one split."""

    name: str
    """The data set's own name of the split."""
    split: PreparedSplit | None
    """What the manifest says, None where it is not prepared."""
    problem: str | None
    """What is wrong, None where nothing is."""


def folder_of(dataset: HubDataset) -> Path:
    """Where a data set is kept: its key says what was asked for, hashes say what was got."""
    asked: list[Any] = [
        _FORMAT, dataset.hub_id, dataset.config, dataset.revision, dataset.image_column,
        dataset.text_columns, dataset.label_column, dataset.class_names, dataset.label_range,
    ]  # fmt: skip
    if dataset.local is not None:
        asked += [str(dataset.local.resolve()), _listing(dataset.local)]
    return cache_root() / "datasets" / f"{dataset.name}-{content_key(asked)}"


def prepare(
    dataset: HubDataset,
    source: Path | None = None,
    *,
    thorough: bool = False,
    report: Report | None = None,
    open_hub: OpenHub | None = None,
) -> Prepared:
    """Fetch, check and convert what is not there yet of a data set.

    Any number of processes may ask for the same data set at once: one works, the others wait and
    use what it made. A killed one goes on at the split where it stopped.

    Args:
        dataset: what is wanted.
        source: a local copy (folder or file) that is taken instead of the hub's.
        thorough: compare hashes of what is there, and fetch damaged splits again.
        report: called as rows are converted.
        open_hub: stands in for the hub.

    Raises:
        InputError: where the data cannot be had or are not what `dataset` says, or the cache folder
            cannot be written to.
    """
    folder = folder_of(dataset)
    if not thorough and (found := _complete(dataset, folder)) is not None:
        return found
    try:
        with locked(folder / ".lock"):
            entries = _entries(folder)
            done = {
                name: entry
                for name, entry in entries.items()
                if (_damage if thorough else _resized)(folder, entry) is None
            }
            missing = [name for name in dataset.sources if name not in done]
            if missing:
                _fetch(dataset, folder, missing, done, source or dataset.local, report, open_hub)
    except OSError as error:
        raise InputError(
            f"data set {dataset.name} could not be kept in {folder} ({error}); "
            f"another folder can be named in APGD_CACHE"
        ) from error
    return open_prepared(dataset)


def open_prepared(dataset: HubDataset) -> Prepared:
    """A data set that was prepared before.

    Raises:
        InputError: where it was not, or has other numbers of rows than `dataset` says.
    """
    folder = folder_of(dataset)
    found = _complete(dataset, folder)
    if found is None:
        missing = [name for name in dataset.sources if name not in _entries(folder)]
        raise InputError(
            f"data set {dataset.name} must be prepared, but {folder} lacks "
            f"{', '.join(missing) or 'files that its manifest names'}; "
            f"`apgd data prepare SUITE --task {dataset.name}` fetches what is missing"
        )
    for name, split in found.splits.items():
        if (expected := dataset.rows.get(name)) not in (None, split.rows):
            raise InputError(
                f"split {name!r} of data set {dataset.name} must have {expected} rows, but "
                f"{split.path} has {split.rows}"
            )
    return found


def is_prepared(dataset: HubDataset) -> bool:
    """Whether all splits are on this machine; says nothing of damage."""
    return _complete(dataset, folder_of(dataset)) is not None


def verify(dataset: HubDataset) -> tuple[SplitState, ...]:
    """Hash, count and look through every split of a data set again."""
    folder = folder_of(dataset)
    entries = _entries(folder)
    states = []
    for name in dataset.sources:
        if name not in entries:
            states.append(SplitState(name, None, "not prepared"))
            continue
        split = _split(folder, entries[name])
        problem = _damage(folder, entries[name]) or _contradiction(dataset, name, split)
        states.append(SplitState(name, split, problem))
    return tuple(states)


def _fetch(
    dataset: HubDataset,
    folder: Path,
    missing: list[str],
    done: dict[str, Any],
    source: Path | None,
    report: Report | None,
    open_hub: OpenHub | None,
) -> None:
    # Reading what is prepared needs none of these, and importing them takes half a second.
    from apgd.data.conversion import convert
    from apgd.data.origins import HubOrigin, LocalOrigin

    for path in folder.iterdir():
        if is_leftover(path):
            path.unlink(missing_ok=True)
    scratch = folder / "scratch"
    origin: Origin
    if source is not None:
        origin = LocalOrigin(dataset, source)
    else:
        origin = (open_hub or HubOrigin)(dataset, scratch)
    for name in missing:
        path = folder / f"{name}.parquet"
        with atomic_path(path) as temporary:
            tell = None if report is None else _of_split(report, name)
            converted = convert(dataset, name, origin.split(name), temporary, tell)
        done[name] = {
            **asdict(converted),
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "origin": dict(origin.describe()),
            "versions": dict(library_versions(*_LIBRARIES)),
        }
        asked = {"name": dataset.name, "hub_id": dataset.hub_id, "config": dataset.config,
                 "revision": dataset.revision}  # fmt: skip
        write_json(folder / _MANIFEST, {"format": _FORMAT, "dataset": asked, "splits": done})
    shutil.rmtree(scratch, ignore_errors=True)


def _of_split(report: Report, name: str) -> Callable[[int, int], None]:
    return lambda done, total: report(name, done, total)


def _complete(dataset: HubDataset, folder: Path) -> Prepared | None:
    entries = _entries(folder)
    if any(n not in entries or _resized(folder, entries[n]) for n in dataset.sources):
        return None
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    splits = {name: _split(folder, entries[name]) for name in dataset.sources}
    return Prepared(folder, manifest, splits)


def _entries(folder: Path) -> dict[str, Any]:
    """What the manifest says of each split; nothing where there is none or it is damaged."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        entries = dict(manifest["splits"])
        for entry in entries.values():
            _split(folder, entry)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return entries


def _split(folder: Path, entry: Mapping[str, Any]) -> PreparedSplit:
    return PreparedSplit(
        path=folder / str(entry["file"]),
        rows=int(entry["rows"]),
        classes=entry["classes"],
        bytes=int(entry["bytes"]),
        sha256=str(entry["sha256"]),
        content_sha256=str(entry["content_sha256"]),
    )


def _resized(folder: Path, entry: Mapping[str, Any]) -> str | None:
    path = folder / entry["file"]
    if not path.exists():
        return f"{path.name} is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{path.name} must have {entry['bytes']} bytes, but has {size}"
    return None


def _damage(folder: Path, entry: Mapping[str, Any]) -> str | None:
    path = folder / entry["file"]
    problem = _resized(folder, entry)
    if problem is None and (found := sha256_file(path)) != entry["sha256"]:
        problem = f"{path.name} must have the hash {entry['sha256'][:12]}, but has {found[:12]}"
    return problem


def _contradiction(dataset: HubDataset, name: str, split: PreparedSplit) -> str | None:
    """What is wrong with an undamaged file."""
    try:
        labels = split.labels
    except (pa.ArrowException, OSError, KeyError) as error:
        return f"{split.path.name} cannot be read ({error})"
    expected = dataset.rows.get(name, split.rows)
    if len(labels) != expected:
        return f"it must have {expected} rows, but has {len(labels)}"
    low, high = dataset.label_range or (0, (dataset.classes or 0) - 1)
    if labels.min() < low or labels.max() > high:
        return f"labels must be in [{low}, {high}], but are in [{labels.min()}, {labels.max()}]"
    return None


def _listing(path: Path) -> list[list[Any]]:
    """What tells a changed folder of the user's from the one that was prepared."""
    if not path.exists():
        raise InputError(f"the user's own data must exist, but {path} does not")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(file, file.stat()) for file in files]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
