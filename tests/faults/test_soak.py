"""Fifty kills at random moments during one run."""

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.small_run import SEARCHED, SmallRun, assert_same

_SOAK = "random kills during one run"
_KILLS = 50
_LONG = (*SEARCHED, "--trials", "12")
_SECONDS = (1.0, 5.0)
"""Between two kills."""
_MOST_SECONDS = 3600.0


def kind_of(process: psutil.Process, driver: int) -> str:
    """What a process of a run is."""
    if process.pid == driver:
        return "driver"
    words = " ".join(process.cmdline())
    for part in ("ray::RemoteWorker", "ray::MergeTrial", "Agent", "gcs_server", "raylet"):
        if part in words:
            return part.removeprefix("ray::")
    return "another of Ray's"


def victim(run: SmallRun, chance: random.Random) -> tuple[str, psutil.Process] | None:
    """A process of a run: in three of five cases a worker, where there is one."""
    assert run.process is not None
    found: list[tuple[str, psutil.Process]] = []
    for process in run.family():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append((kind_of(process, run.process.pid), process))
        except psutil.NoSuchProcess:
            continue
    workers = [one for one in found if one[0] == "RemoteWorker"]
    chosen = workers if workers and chance.random() < 0.6 else found
    return chance.choice(chosen) if chosen else None


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(_MOST_SECONDS)
@pytest.mark.fault(_SOAK, times=_KILLS)
def test_fifty_random_kills(tmp_path: Path, survived: Callable[..., None]) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    for one in (undisturbed, folder):
        one.mkdir()
    SmallRun(undisturbed, _LONG).start().end()
    chance, killed, starts = random.Random(20), Counter[str](), 0
    began = time.monotonic()
    run = SmallRun(folder, _LONG)
    output = ""
    left: list[psutil.Process] = []
    while True:
        run.start()
        starts += 1
        assert run.process is not None
        with suppress(AssertionError):  # it may not come so far
            run.wait_for_log("started Ray here")
        left += run.family() if run.process.poll() is None else []
        while run.process.poll() is None and killed.total() < _KILLS:
            until = time.monotonic() + chance.uniform(*_SECONDS)
            while time.monotonic() < until and run.process.poll() is None:
                time.sleep(0.05)
            try:
                chosen = victim(run, chance)
                if chosen is not None and run.process.poll() is None:
                    left += run.family()
                    chosen[1].kill()
                    killed[chosen[0]] += 1
            except psutil.NoSuchProcess:
                continue
        output = run.output()
        assert "Traceback" not in output, output
        # What a killed driver leaves behind ends by itself, only later.
        for process in left:
            if process.is_running():
                process.kill()
        left = []
        if run.process.returncode == 0:
            break
        assert time.monotonic() - began < _MOST_SECONDS, run.log()
    sys.stdout.write(
        f"{dict(killed)}: {killed.total()} kills, {starts} starts, "
        f"{time.monotonic() - began:.0f} s\n{run.log()}\n"
    )
    assert killed.total() == _KILLS, "the run was over before"
    assert_same(folder, undisturbed)
    survived(_SOAK, _KILLS)
