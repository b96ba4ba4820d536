"""A small real run as a process of its own: started, hurt, started again, and compared."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from apgd.files import sha256_path
from tests.signals import heard
from tune.records import Kind, RecordStore

_COMMAND = (
    *(sys.executable, "-m", "experiments.full_repro", "--smoke"),
    *("--run-dir", "run", "--experts-dir", "experts"),
)
QUICK = ("--methods", "weight_averaging")
"""Experts, reference rows and a merge: no search."""
SEARCHED = ("--methods", "doge_ta")
PATIENCE = 480.0


class SmallRun:
    """The run folder `folder/run`, the experts `folder/experts`, and the command on them.

    Args:
        folder: where both are.
        arguments: of the command, for example `QUICK`.
        within: a command that is put before it.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str] = QUICK, within: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        here = () if "--address" in arguments else ("--address", "local", "--cpus", "2")
        self._command = [*within, *_COMMAND, *here, *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self._printed: IO[str] | None = None
        self._before = 0

    def start(self, *more: str, **environment: str) -> "SmallRun":
        """Start the command."""
        self._before = self.log().count("results go to")
        # Not a pipe, which would last as long as the last of Ray's processes.
        self._printed = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        with heard():
            self.process = subprocess.Popen(
                [*self._command, *more],
                cwd=self.folder,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "250", **environment},
                start_new_session=True,
            )
        return self

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, while the command runs."""
        assert self.process is not None
        until = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AssertionError(f"the run ended before that:\n{self.output()}")
            assert time.monotonic() < until, "the run made no progress"
            time.sleep(0.02)

    def wait_for_log(self, words: str) -> None:
        """Wait until the log says something, since its last beginning."""
        self.wait_for(
            lambda: (
                self.log().count("results go to") > self._before
                and words in self.log().rpartition("results go to")[2]
            )
        )

    def output(self) -> str:
        """Wait for the end; all that was printed."""
        assert self.process is not None
        assert self._printed is not None
        self.process.wait(PATIENCE)
        self._printed.seek(0)
        return self._printed.read()

    def end(self, status: int = 0) -> str:
        """Wait for the end, which must have this status; all that was printed."""
        output = self.output()
        assert self.process is not None
        assert self.process.returncode == status, output
        assert "Traceback" not in output, output
        assert "stack trace" not in output.lower()
        return output

    def send(self, number: signal.Signals) -> None:
        """Send the driver a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def family(self) -> list[psutil.Process]:
        """The driver and every process below it."""
        assert self.process is not None
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def log(self) -> str:
        """What is in `run.log`."""
        path = self.folder / "run" / "run.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def kill_driver(run: SmallRun) -> None:
    """SIGKILL to the driver alone; what it leaves behind has to end by itself.

    Ray's agents, which do nothing without the others, take minutes over it, and are ended here.
    """
    family = run.family()
    agents = [one for one in family if "Agent" in command_of(one)]
    run.send(signal.SIGKILL)
    run.output()
    nothing_left([one for one in family if one not in agents])
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()


def command_of(process: psutil.Process) -> str:
    """What a process was started with; nothing, where it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def nothing_left(family: Sequence[psutil.Process], seconds: float = 120.0) -> None:
    """Assert that processes end within a while; the rest are killed."""
    _, alive = psutil.wait_procs(list(family), timeout=seconds)
    told = [command_of(process)[:80] for process in alive if process.is_running()]
    for process in alive:
        process.kill()
    assert not told, f"left behind: {told}"


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that a run computed, but times: by what it is."""
    found: dict[str, Any] = {}
    store = RecordStore(folder / "run")
    for kind in Kind:
        for record in store.all(kind):
            details = {k: v for k, v in record.details.items() if k != "seconds"}
            found[f"{kind}/{record.key}"] = (
                dict(record.params),
                dict(record.inputs),
                dict(record.scores),
                details,
            )
            if kind is Kind.EVALUATION:
                for cell, answers in store.answers(record).items():
                    found[f"{record.key}/{cell}"] = np.asarray(answers).tobytes()
    for manifest in sorted((folder / "experts").glob("*/manifest.json")):
        if ".damaged" not in manifest.parent.name:
            weights = manifest.parent / "weights.safetensors"
            found[manifest.parent.name] = sha256_path(weights)
    return found


def assert_same(folder: Path, reference: Path) -> None:
    """Assert that two runs computed the same, to the bit."""
    ours, theirs = numbers(folder), numbers(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
