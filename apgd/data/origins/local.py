"""Splits from a local copy: images in class folders, Parquet or Arrow files, or `save_to_disk`."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.dataset

from apgd.data.holdout import pool_rows
from apgd.data.hub import HubDataset
from apgd.data.origins._rows import BATCH, SourceSplit, from_dataset
from apgd.data.tasks import Split
from apgd.errors import InputError

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_TABLES = (".parquet", ".arrow")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


class LocalOrigin:
    """A copy of a data set in a folder, or in one Parquet file.

    A split is looked for as `<split>/` written by `save_to_disk`, as `<split>*.parquet` or `.arrow`
    files (also below `data/`, `<split>/` and the configuration's folder), and as
    `<split>/<class>/<image>`. A user's own data may also be one pool, `<class>/<image>` or a single
    file: a fifth of it, by a permutation with seed 0, becomes the test split.

    Args:
        dataset: what is looked for.
        source: the folder or file.

    Raises:
        InputError: where `source` does not exist.
    """

    def __init__(self, dataset: HubDataset, source: Path) -> None:
        if not source.exists():
            raise InputError(f"the local copy of data set {dataset.name} must exist: {source}")
        self._dataset = dataset
        self._source = source

    def describe(self) -> Mapping[str, str | None]:
        """The path."""
        return {"kind": "local", "path": str(self._source.resolve())}

    def split(self, name: str) -> SourceSplit:
        """The rows of a split.

        Raises:
            InputError: where nothing in the folder is that split, or files of a series are missing.
        """
        found = self._divided(name) if self._source.is_dir() else None
        if found is None and self._dataset.local is not None:
            found = self._part_of_pool(name)
        if found is None:
            raise InputError(
                f"{self._source} must hold split {name!r} of data set {self._dataset.name} as "
                f"{name}/ with a folder per class, as {name}*.parquet, or as {name}/ written by "
                f"save_to_disk, but has {_listing(self._source)}"
            )
        return found

    def _divided(self, name: str) -> SourceSplit | None:
        folder = self._source / name
        if (folder / "state.json").exists():
            return from_dataset(datasets.load_from_disk(str(folder)))
        bases = [self._source, self._source / "data", folder]
        if self._dataset.config is not None:
            bases.append(self._source / self._dataset.config)
        for base in bases:
            for ending in _TABLES:
                files = _tables(base, name, ending) if base != folder else _all(base, ending)
                if files:
                    return _from_tables(files)
        if self._dataset.image_column is not None and (classes := _class_folders(folder)):
            return self._from_classes(classes)
        return None

    def _part_of_pool(self, name: str) -> SourceSplit | None:
        pool: SourceSplit | None = None
        if self._source.is_file():
            if self._source.suffix in _TABLES:
                pool = _from_tables([self._source])
        elif (self._source / "state.json").exists():
            pool = from_dataset(datasets.load_from_disk(str(self._source)))
        elif files := [file for ending in _TABLES for file in _all(self._source, ending)]:
            pool = _from_tables(files)
        elif self._dataset.image_column is not None and (classes := _class_folders(self._source)):
            pool = self._from_classes(classes)
        if pool is None:
            return None
        part = Split.TEST if name == self._dataset.splits[Split.TEST] else Split.TRAIN
        return pool.only(pool_rows(part, pool.rows))

    def _from_classes(self, folders: list[Path]) -> SourceSplit:
        image, label = str(self._dataset.image_column), self._dataset.label_column
        files = [(path, folder.name) for folder in folders for path in _images(folder)]

        def batches() -> Iterator[pa.Table]:
            for start in range(0, len(files), BATCH):
                chosen = files[start : start + BATCH]
                yield pa.table(
                    {
                        image: pa.array([path.read_bytes() for path, _ in chosen], pa.binary()),
                        label: pa.array([name for _, name in chosen], pa.string()),
                    }
                )

        kinds = {image: datasets.Value("binary"), label: datasets.Value("string")}
        return SourceSplit(len(files), datasets.Features(kinds), batches)


def class_names_in(source: Path, label_column: str = "label") -> tuple[str, ...]:
    """The class names of a user's own data, in the order that labels them 0, 1, ...

    Those of class folders are sorted by name; a file's are what its schema names, or else the
    sorted values of its label column.

    Args:
        source: `<class>/<image>`, `train/<class>/<image>`, or a Parquet file.
        label_column: where a file keeps labels.

    Raises:
        InputError: where no classes are found.
    """
    if source.is_dir():
        root = source / "train" if (source / "train").is_dir() else source
        names = [folder.name for folder in _class_folders(root)]
    elif source.suffix in _TABLES and source.exists():
        split = _from_tables([source])
        if label_column not in split.features:
            raise InputError(f"{source} must have a column {label_column!r}, but has "
                             f"{', '.join(split.features)}")  # fmt: skip
        feature = split.features[label_column]
        if isinstance(feature, datasets.ClassLabel):
            names = list(feature.names)
        else:
            found = {one for table in split.batches() for one in table[label_column].to_pylist()}
            whole = all(isinstance(one, int) for one in found)
            highest = max(found, default=-1) if whole else 0
            names = [str(i) for i in range(highest + 1)] if whole else sorted(map(str, found))
    else:
        names = []
    if not names:
        raise InputError(f"{source} must be a folder with a folder per class or a Parquet file")
    return tuple(names)


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for path in inside if any(True for _ in _images(path))]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)


def _all(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []


def _tables(folder: Path, split: str, ending: str) -> list[Path]:
    """The files of a split in a folder that may hold other splits' too."""
    named = re.compile(rf"{re.escape(split)}(-\d{{5}}-of-\d{{5}})?(-[0-9a-f]{{16}})?{ending}")
    return [path for path in _all(folder, ending) if named.fullmatch(path.name)]


def _from_tables(files: list[Path]) -> SourceSplit:
    numbered = [match for path in files if (match := _SHARD.search(path.stem))]
    if numbered and len(files) != int(numbered[0].group(2)):
        raise InputError(
            f"{files[0].parent} must hold all {int(numbered[0].group(2))} files of the series of "
            f"{files[0].name}, but has {len(files)}"
        )
    try:
        if files[0].suffix == ".parquet":
            opened = pyarrow.dataset.dataset([str(path) for path in files], format="parquet")
        else:
            opened = pyarrow.dataset.dataset(pa.concat_tables(map(_arrow_table, files)))
        rows = opened.count_rows()
        features = datasets.Features.from_arrow_schema(opened.schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{files[0]} must be a {files[0].suffix} file, but: {reason}") from error

    def batches() -> Iterator[pa.Table]:
        for batch in opened.to_batches(batch_size=BATCH, batch_readahead=2, fragment_readahead=1):
            yield pa.Table.from_batches([batch])

    return SourceSplit(rows, features, batches)


def _arrow_table(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _listing(folder: Path) -> str:
    if folder.is_file():
        return "one file"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
