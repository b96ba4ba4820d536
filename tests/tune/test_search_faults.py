"""A search whose workers and processes are killed or stopped finds the same as undisturbed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tune.small_search import (
    fault,
    found_in,
    kept_in,
    make_run,
    run_here,
    said,
    search_with,
    small_pool,
    small_study,
)
from tune.cluster import ray_session
from tune.records import Record, RecordStore
from tune.search import tuner
from tune.search.judges import Stuck
from tune.workers.pool import WorkerPool

STUDIES = [
    small_study("doge_ta", trials=8, published_params=(("iterations", 16),), at_once=3),
    small_study("ties", seed=1, trials=6),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with pytest.MonkeyPatch.context() as patch, ray_session(address="local", cpus=2):
        yield small_pool(2, patch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What one worker finds in this process, trial after trial."""
    folder = make_run(tmp_path_factory.mktemp("here"))
    with pytest.MonkeyPatch.context() as patch:
        found = found_in(run_here(folder, STUDIES, patch, bases=True))
    return found, kept_in(folder)


def at_record(number: int, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act in this process when so many records are written."""
    original, count = RecordStore.add, [0]

    def add(store: RecordStore, record: Record, *rest: Any) -> None:
        original(store, record, *rest)
        count[0] += 1
        if count[0] == number:
            act()

    patch.setattr(RecordStore, "add", add)


def kill_processes(title: str) -> None:
    """SIGKILL to all of this Ray's processes of a kind."""
    chosen = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # another of Ray's, which has just ended
            if process.name().startswith(title[:15]):
                chosen.append(process)
                process.kill()
    assert chosen


@pytest.mark.parametrize(
    "faults",
    [
        # Both workers at about the same time, and one over a last rung.
        ("0-0-1", "1-0-0", "0-3-0"),
        pytest.param(
            ("0-0-2", "1-0-1", "0-3-0", "0-3-1", "1-4-0", "0-5-0", "0-7-0"), marks=pytest.mark.slow
        ),
    ],
)
def test_workers_are_killed_one_after_another(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any], faults: tuple[str, ...]
) -> None:
    for name in faults:
        fault(folder, f"{name}.die")
    found = found_in(search_with(pool, folder, STUDIES))
    assert (found, kept_in(folder)) == whole
    left = [path.name for path in (folder / "run" / "faults").iterdir()]
    told = said(folder)
    for name in faults:
        study, number, _rung = map(int, name.split("-"))
        trial = f"trial {number} of {STUDIES[study].name}"
        died = [line for line in told if "died while judging" in line and trial in line]
        assert died or f"{name}.die" in left, name  # which was stopped before that rung
    assert sum("died while judging" in line for line in told) >= len(faults) - 3
    assert all(line.startswith(("worker ", "no worker is left")) for line in told), told


def test_processes_of_the_search_are_killed(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_record(3, monkeypatch, lambda: kill_processes("ray::MergeTrial"))
    found = found_in(search_with(pool, folder, STUDIES))
    assert (found, kept_in(folder)) == whole
    (line,) = said(folder)
    assert line.startswith("a process of the search died (")
    assert line.endswith("from the rungs on disk")


def test_a_worker_that_stands_still_holds_nobody_up(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "Stuck", lambda: Stuck(least=0.3, times=3))
    fault(folder, "0-4-0.stop")
    try:
        found = found_in(search_with(pool, folder, STUDIES))
    finally:
        for stopped in (folder / "run" / "faults").glob("*.stopped"):
            os.kill(int(stopped.stem), signal.SIGCONT)
    assert (found, kept_in(folder)) == whole
    assert any("judging trial 4 of doge_ta/seed0 for" in line for line in said(folder))
