"""The driver ends, in every way that a driver can, and the same command goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.small_run import SmallRun, assert_same, kill_driver, nothing_left

pytestmark = pytest.mark.slow

Survived = Callable[..., None]
_KILLED = "SIGKILL of the driver, then the same command"
_TERMINATED = "SIGTERM"
_INTERRUPTED = "Ctrl-C"
_TWO = "two drivers on one run folder"


@pytest.mark.fault(_KILLED)
@pytest.mark.fault(_TERMINATED)
@pytest.mark.fault(_INTERRUPTED)
@pytest.mark.fault(_TWO)
def test_a_run_that_is_ended_again_and_again_has_the_same_numbers(
    quick: Path, tmp_path: Path, survived: Survived
) -> None:
    run = SmallRun(tmp_path)
    run.start().wait_for(lambda: bool(list((tmp_path / "experts").glob("*/manifest.json"))))
    family = run.family()
    run.send(signal.SIGTERM)
    output = run.end(143)
    assert "✓ report" not in run.log()  # it does not finish first
    assert output.splitlines()[-1] == ("interrupted by SIGTERM; the same command goes on from here")
    assert "ended by Stopped: SIGTERM" in run.log()
    nothing_left(family)
    survived(_TERMINATED)

    run.start().wait_for_log("✓ data")
    run.send(signal.SIGSTOP)  # so that it is not at its end before the second one is refused
    second = SmallRun(tmp_path).start()
    assert "a run folder serves one process at a time" in second.end(2)
    assert "another process was refused" in run.log()
    survived(_TWO)
    run.send(signal.SIGCONT)
    run.wait_for(lambda: bool(list((tmp_path / "run").glob("records/evaluation/*.json"))))
    family = run.family()
    assert run.process is not None
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does, to Ray's processes too
    assert run.end(130).splitlines()[-1] == "interrupted; the same command goes on from here"
    nothing_left(family)
    survived(_INTERRUPTED)

    run.start().wait_for_log("✓ data")
    kill_driver(run)
    run.start().end()  # its lock went with it
    assert_same(tmp_path, quick)
    survived(_KILLED)
