"""A search that is killed goes on: nothing is lost, nothing done twice, and the end is the same."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from apgd.files import write_json
from tests.tune.small_search import (
    NAP,
    SmallEvaluator,
    found_in,
    kept_in,
    make_run,
    merges_scored,
    run_here,
    search_with,
    small_pool,
    small_study,
)
from tune.cluster import ray_session
from tune.records import RecordStore
from tune.search import sampling, trials
from tune.search.studies import Sampler

STUDIES = [
    small_study("doge_ta", trials=9, at_once=3, published_params=(("iterations", 16),)),
    small_study("ties", seed=1, trials=6, sampler=Sampler.GRID),
]
FEW = [
    small_study("doge_ta", trials=4, at_once=1, published_params=(("iterations", 4),)),
    small_study("ties", seed=1, trials=2),
]


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


class Deadline:
    """Kills at a call of whatever leaves a trace: before it does, or after it did."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.last: int | None = None
        """The call at which it kills; never, where None."""
        for place, name in (
            (SmallEvaluator, "load"),
            (trials, "write_sealed"),
            (RecordStore, "add"),
            (optuna.storages.RDBStorage, "create_new_study"),
            (optuna.Study, "set_metric_names"),
            (sampling, "add_trials"),
        ):
            patch.setattr(place, name, self._deadly(getattr(place, name)))

    def _deadly(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._tick()
            found = original(*arguments, **named)
            self._tick()
            return found

        return call

    def _tick(self) -> None:
        self.calls += 1
        if self.calls == self.last:
            raise Killed


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> Deadline:
    return Deadline(monkeypatch)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    make_run(folder)
    return folder


def test_a_search_can_be_killed_at_any_call(
    deadline: Deadline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(tmp_path / "whole")
    expected = found_in(run_here(whole, FEW, monkeypatch)), kept_in(whole)
    all_calls, merges = deadline.calls, merges_scored(whole)
    assert all_calls > 100
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'empty.db'}")  # which takes a while
    # The step is odd, so that kills come before and after what was called.
    for last in range(1, all_calls + 1, 9):
        folder = fresh(tmp_path / str(last))
        shutil.copy(tmp_path / "empty.db", folder / "run" / "studies.db")
        deadline.calls, deadline.last = 0, last
        with pytest.raises(Killed):
            run_here(folder, FEW, monkeypatch)
        deadline.last = None
        assert (found_in(run_here(folder, FEW, monkeypatch)), kept_in(folder)) == expected
        # Only the rung under way is done again, of at most seven settings.
        assert merges_scored(folder) <= merges + 7


def test_a_search_that_is_killed_again_and_again_comes_to_its_end(
    deadline: Deadline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(tmp_path / "whole")
    expected = found_in(run_here(whole, FEW, monkeypatch)), kept_in(whole)
    folder = fresh(tmp_path / "killed")
    draw = random.Random(6)
    kills = 0
    while True:
        deadline.calls, deadline.last = 0, draw.randint(14, 40)  # a rung takes up to 16 calls
        try:
            found = found_in(run_here(folder, FEW, monkeypatch))
        except Killed:
            kills += 1
            assert kills < 100
            continue
        break
    assert (found, kept_in(folder)) == expected
    assert kills >= 5


def search_in_a_process(folder: Path) -> None:
    """A driver with a Ray of its own, which takes its processes along when it ends well."""
    os.setsid()
    os.environ[NAP] = "0.05"
    with pytest.MonkeyPatch.context() as patch, ray_session(address="local", cpus=1):
        found = found_in(search_with(small_pool(1, patch), folder, STUDIES))
    write_json(folder / "found.json", found)


def kill(process: Any) -> None:
    """SIGKILL to the driver and to all that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.join()
    psutil.wait_procs(family[1:], timeout=20)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_sigkill_at_any_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what takes longest is imported once
    draw = random.Random(20)

    def start(where: Path) -> Any:
        process = context.Process(target=search_in_a_process, args=(where,))
        process.start()
        return process

    process = start(whole)
    process.join(240)
    assert process.exitcode == 0
    merges = merges_scored(whole)
    kills, redone = 0, 0
    while not (folder / "found.json").exists():
        process = start(folder)
        before, more = merges_scored(folder), draw.randint(0, 4)
        deadline = time.monotonic() + 240
        while merges_scored(folder) - before < more and process.exitcode is None:
            assert time.monotonic() < deadline, "the search made no progress"
            time.sleep(0.002)
        if kills < 5:
            # At some moment of Ray's start, or of a rung.
            time.sleep(draw.random() * (0.2 if more else 3.0))
            if process.exitcode is None:
                kill(process)
                kills += 1
                redone += 7
        process.join(240)
        assert kills <= 5
    assert kills >= 4
    assert (folder / "found.json").read_bytes() == (whole / "found.json").read_bytes()
    assert kept_in(folder) == kept_in(whole)
    assert all(trial[1] != "RUNNING" for study in kept_in(folder).values() for trial in study)
    # A rung on disk is not judged again: each kill costs at most the one under way.
    assert merges_scored(folder) <= merges + redone
    # Without Ray it comes out the same.
    here = fresh(tmp_path / "here")
    write_json(tmp_path / "here.json", found_in(run_here(here, STUDIES, monkeypatch, bases=True)))
    assert (tmp_path / "here.json").read_bytes() == (whole / "found.json").read_bytes()
