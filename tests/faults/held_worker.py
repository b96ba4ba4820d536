"""A worker that stands still in the middle of what it does, until a test has done something to it.

So what is done to it comes neither before the middle nor after the end, however fast the machine.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from apgd import TaskVectors
from apgd.finetune import ExpertSpec
from tune.evaluators import ScoreJob, Workload
from tune.workers import process as worker_process
from tune.workers.remote import RemoteWorker

Act = Callable[[psutil.Process], None]
_HOLD = "hold"


class Hold:
    """Has the first worker that comes to the middle of something in a folder wait there."""

    def __init__(self, folder: Path) -> None:
        self._held = folder / f"{_HOLD}.held"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _HOLD).touch()
        self.done: list[psutil.Process] = []

    def when_held(self, act: Act) -> Callable[[object], None]:
        """For `on_progress`: do something to the worker that waits, which is then in `done`."""

        def watch(_progress: object) -> None:
            if not self.done and self._held.exists():
                self.done.append(psutil.Process(int(self._held.read_text())))
                act(self.done[0])

        return watch

    def let_go(self) -> None:
        """Have the worker go on, where it still can."""
        self._held.unlink()


def _wait(folder: Path) -> None:
    """Wait here where that is asked for, and was not done before."""
    hold, held = folder / _HOLD, folder / f"{_HOLD}.held"
    if hold.exists():
        hold.write_text(str(os.getpid()))
        hold.rename(held)
        while held.exists():
            time.sleep(0.02)


class HeldWorker(RemoteWorker):
    """Waits in the middle of a training, with a part of it on disk, or of a merge."""

    def train(self, suite: str, spec: ExpertSpec, root: Path) -> dict[str, Any]:
        finetune = worker_process.finetune

        def held(*arguments: Any, report: Callable[[int, int], None], **options: Any) -> Any:
            def report_and_wait(done: int, total: int) -> None:
                report(done, total)
                if done > spec.settings.checkpoint_every:
                    _wait(root)

            return finetune(*arguments, report=report_and_wait, **options)

        with patch.object(worker_process, "finetune", held):
            manifest: dict[str, Any] = self.worker.train(suite, spec, root)
        return manifest

    def score(self, workload: Workload, job: ScoreJob) -> float:
        read = TaskVectors.__getitem__

        def held(vectors: TaskVectors, name: str) -> Any:
            if job.params:  # which reference rows do not have
                _wait(workload.run_dir)
            return read(vectors, name)

        with patch.object(TaskVectors, "__getitem__", held):
            score: float = self.worker.score(workload, job)
        return score
