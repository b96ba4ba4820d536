"""Splits from the hub, or from what its clients left in their caches."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from time import sleep as _sleep
from typing import Any

import datasets
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub.constants import is_offline_mode

from apgd.data.hub import HubDataset
from apgd.data.origins._rows import SourceSplit, from_dataset
from apgd.data.retry import is_unanswered, with_retries
from apgd.errors import InputError

Load = Callable[..., Any]
"""`datasets.load_dataset`, or what stands in for it."""
Resolve = Callable[[str, str | None], str]
"""The commit that a revision of a data set on the hub means now."""

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)")


def resolve_on_hub(hub_id: str, revision: str | None) -> str:
    """The commit of a data set on the hub; all splits are then read from the same one."""
    return str(huggingface_hub.HfApi().dataset_info(hub_id, revision=revision).sha)


class HubOrigin:
    """A data set of the hub at one commit.

    Without a connection, what the hub's cache or the cache of `datasets` holds is read instead. No
    code that comes with a data set is ever run.

    Args:
        dataset: one with a hub id.
        scratch: folder for intermediate copies, deleted by the caller.
        load: opens a split.
        resolve: finds the commit.
        sleep: waits between attempts.

    Raises:
        InputError: where the data set is unknown, or can be had neither from the hub nor from a
            cache.
    """

    def __init__(
        self,
        dataset: HubDataset,
        scratch: Path,
        *,
        load: Load = datasets.load_dataset,
        resolve: Resolve = resolve_on_hub,
        sleep: Callable[[float], None] = _sleep,
    ) -> None:
        if dataset.hub_id is None:
            raise InputError(f"data set {dataset.name} has no hub id to be downloaded by")
        self._dataset = dataset
        self._hub_id = dataset.hub_id
        self._scratch = scratch
        self._load = load
        self._sleep = sleep
        self._snapshots: list[Path] = []
        self._offline = is_offline_mode()
        self._commit: str | None = None
        if not self._offline:
            try:
                self._commit = with_retries(
                    lambda: resolve(self._hub_id, dataset.revision), self._sleep
                )
            except Exception as error:
                if not is_unanswered(error):
                    raise self._refused(error) from error
                self._offline = True
        if self._offline:
            self._snapshots = self._cached_snapshots()

    def describe(self) -> Mapping[str, str | None]:
        """Hub id, configuration and commit."""
        return {
            "kind": "hub",
            "hub_id": self._hub_id,
            "config": self._dataset.config,
            "commit": self._commit,
        }

    def split(self, name: str) -> SourceSplit:
        """The rows of a split.

        Raises:
            InputError: where the split does not exist or cannot be had.
        """
        if self._offline:
            return from_dataset(self._cached(name))
        try:
            opened = with_retries(
                lambda: self._load(
                    self._hub_id,
                    self._dataset.config,
                    split=name,
                    revision=self._commit,
                    cache_dir=str(self._scratch),
                ),
                self._sleep,
            )
        except Exception as error:
            raise self._refused(error) from error
        return from_dataset(opened)

    def _cached(self, name: str) -> datasets.Dataset:
        found = [] if self._snapshots else ["it is not in the hub's cache"]
        for snapshot in self._snapshots:
            try:
                _check_shards(snapshot)
                opened: datasets.Dataset = self._load(
                    str(snapshot), self._dataset.config, split=name, cache_dir=str(self._scratch)
                )
            except Exception as error:
                found.append(f"its copy in the hub's cache cannot be used ({_first_line(error)})")
            else:
                self._snapshots = [snapshot]  # the other splits come from the same commit
                self._commit = snapshot.name
                return opened
        if self._in_cache_of_datasets():
            try:
                return self._load(
                    self._hub_id, self._dataset.config, split=name, revision=self._dataset.revision
                )
            except Exception as error:
                found.append(f"its copy in the cache of datasets is of no use "
                             f"({_first_line(error)})")  # fmt: skip
        else:
            found.append("it is not in the cache of datasets")
        raise InputError(
            f"split {name!r} of data set {self._dataset.name} must be prepared or cached where "
            f"the hub cannot be reached, but {' and '.join(found)}; {self._remedy()}"
        )

    def _in_cache_of_datasets(self) -> bool:
        """A cheap look, since the library itself would first try the hub for half a minute."""
        namespace = self._hub_id.split("/")[0]
        return any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"{namespace}___*"))

    def _cached_snapshots(self) -> list[Path]:
        """Folders of commits in the hub's cache: the one that is meant first, then newer ones."""
        repository = f"datasets--{self._hub_id.replace('/', '--')}"
        folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / repository
        revision = self._dataset.revision or "main"
        meant = folder / "refs" / revision
        names = [meant.read_text().strip()] if meant.is_file() else [revision]
        if self._dataset.revision is None and (folder / "snapshots").is_dir():
            # What was downloaded by commit, as this class does, is not known as "main".
            by_age = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
            names += [path.name for path in reversed(by_age)]
        paths = [folder / "snapshots" / name for name in dict.fromkeys(names)]
        return [path for path in paths if path.is_dir()]

    def _refused(self, error: Exception) -> InputError:
        what = f"data set {self._dataset.name} ({self._hub_id}"
        what += f", {self._dataset.config})" if self._dataset.config else ")"
        return InputError(
            f"{what} could not be downloaded ({type(error).__name__}: {_first_line(error)}); "
            f"{self._remedy()}"
        )

    def _remedy(self) -> str:
        revision = f" --revision {self._dataset.revision}" if self._dataset.revision else ""
        return (
            f"with a connection, `hf download {self._hub_id} --repo-type dataset{revision}` fills "
            f"the hub's cache, or give a local copy: "
            f"`apgd data prepare SUITE --task {self._dataset.name} --from DIR`, with the copy in "
            f"DIR{os.sep}{self._dataset.name}"
        )


def _check_shards(folder: Path) -> None:
    """Raise InputError where a download that was cut short left some files of a series out."""
    for path in sorted(folder.rglob("*")):
        match = _SHARD.fullmatch(path.name)
        if match is None:
            continue
        stem, _, count, ending = match.groups()
        for i in range(int(count)):
            sibling = path.with_name(f"{stem}-{i:05d}-of-{count}{ending}")
            if not sibling.exists():
                raise InputError(f"{sibling.name} is missing")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
