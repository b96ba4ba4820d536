"""What a run shows while it works: bars on a terminal, one line per finished stage anywhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from apgd.masking import without_secrets
from tune.causes import cause_of
from tune.log import append


@dataclass
class Stage:
    """One stage of a run."""

    name: str
    seconds: float = 0.0
    done: int = 0
    """Units of work done now."""
    reused: int = 0
    """Units of work that an earlier run had done."""
    finished: bool = False
    note: str = ""
    """What the finished line says besides the counts."""
    _bar: Any = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Name, seconds and counts, as JSON values."""
        values = asdict(self)
        return {key: values[key] for key in ("name", "seconds", "done", "reused")}


class Display:
    """Shows stages on a console; a context manager, because bars need a thread.

    Args:
        console: where to; bars appear only if it is a terminal.
        log: a file that gets every line that is said, with the time, and how the run ended.
    """

    def __init__(self, console: Console, log: Path | None = None) -> None:
        self.console = console
        self._log = log
        self.stages: list[Stage] = []
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: object,
    ) -> None:
        self._progress.stop()
        if error is not None:
            cause = cause_of(error)
            self._note(f"ended by {type(cause).__name__}: {cause}".rstrip(": "))

    def say(self, text: str) -> None:
        """One line above the bars, and in the log; secrets are masked."""
        text = without_secrets(text)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._note(text)

    def _note(self, text: str) -> None:
        if self._log is None:
            return
        try:
            append(self._log, without_secrets(text))
        except OSError as error:  # a full disk ends the run where a result is lost, not here
            self.console.print(f"{self._log} misses this line: {error.strerror}", markup=False)

    @contextmanager
    def stage(self, name: str, total: int, reused: int = 0) -> Iterator["StageView"]:
        """A stage of `total` units of work of which `reused` need not be done."""
        stage = Stage(name, reused=reused)
        self.stages.append(stage)
        task = self._progress.add_task(name, total=total, completed=reused, detail="")
        view = StageView(stage, self._progress, task)
        started = time.perf_counter()
        yield view
        stage.seconds = time.perf_counter() - started
        stage.finished = True
        self._progress.remove_task(task)
        counts = [f"{stage.done} done"] if stage.done or not stage.reused else []
        if stage.reused:
            counts.append(f"{stage.reused} reused")
        note = f"; {stage.note}" if stage.note else ""
        self.say(f"✓ {name:<12} {', '.join(counts):<24} {stage.seconds:6.1f} s{note}")


class StageView:
    """What the code of a stage tells the display."""

    def __init__(self, stage: Stage, progress: Progress, task: Any) -> None:
        self._stage = stage
        self._progress = progress
        self._task = task

    def advance(self, units: int = 1, done: int | None = None) -> None:
        """So many units of the bar; `done` units of work, as many where None."""
        self._stage.done += units if done is None else done
        self._progress.advance(self._task, units)

    def at(self, completed: float, detail: str = "") -> None:
        """Set the bar to an absolute position, with a word on what is under way."""
        self._progress.update(self._task, completed=completed, detail=detail)

    def count(self, *, done: int, reused: int) -> None:
        """The units of work for the stage's finished line, where the bar counts smaller ones."""
        self._stage.done, self._stage.reused = done, reused

    def note(self, text: str) -> None:
        """What the stage's finished line says besides its counts."""
        self._stage.note = text
