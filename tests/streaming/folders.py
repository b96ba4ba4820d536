"""Merges from disk to disk for tests: what is merged, broken off, read back and compared."""

import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apgd import MergeSummary, merge_files
from apgd.checkpoints import load_weights
from tests.conftest import State, same_bits

Make = Callable[..., tuple[State, dict[str, State]]]
States = tuple[State, dict[str, State]]
Files = tuple[Path, dict[str, Path]]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("doge_ta", {"iterations": 3, "learning_rate": 1e-3}),
    "exact": ("doge_ta", {"solver": "exact"}),
    "ties": ("ties", {"keep_ratio": 0.4}),
    "task_arithmetic": ("task_arithmetic", {}),
    "weight_averaging": ("weight_averaging", {}),
}
SMALL = 300  # bytes of a shard: four shards of the fixture's model
JOB = "merge.json"
Usage = namedtuple("Usage", "total used free")


class InterruptedMergeError(Exception):
    """Stands for whatever ends a merge."""


def after(shards: int) -> Callable[[int, int], None]:
    """A progress callback that ends the merge after some shards."""
    calls = []

    def progress(done: int, _total: int) -> None:
        calls.append(done)
        if len(calls) == shards + 1:  # the first call is before any shard
            raise InterruptedMergeError

    return progress


def merge_and_wait(base: Path, experts: dict[str, Path], out: Path, mark: Path) -> None:
    """Merge a half, leave a mark, and wait to be killed."""

    def progress(done: int, total: int) -> None:
        if done == total / 2:
            mark.touch()
            time.sleep(600)

    merge_files(
        "doge_ta", base, experts, out, shard_bytes=2**16, progress=progress, iterations=9
    )  # fmt: skip


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[n], second[n]) for n in first)


def loaded(path: Path) -> State:
    return load_weights(path, str(path))


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in shards_of(folder)}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_times(summary: MergeSummary) -> dict[str, Any]:
    values = summary.as_dict()
    del values["seconds"]
    return values | {"layers": [layer | {"seconds": 0} for layer in values["layers"]]}


def halved(state: State) -> State:
    return {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
