"""Samples of the tasks: pictures in rows, prompts in a table."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from apgd.data import Examples, ImageExamples, TextExamples
from tune.report.document import SampleGrid, Samples, Table, TableRow, words
from tune.report.manifest import TaskInfo
from tune.report.run import Run

_SCALE = 2
_SIDE = 64  # pixels, at most
_GAP = 4  # pixels between images
_PROMPTS = 2
_LONGEST = 160  # characters of a prompt


def sample_grid(run: Run, samples: Mapping[str, Examples]) -> SampleGrid | None:
    """A row per task that has sample images, seen tasks first; None where no task has any."""
    rows = tuple(
        Samples(
            title=task.title,
            detail=seen + _detail(task),
            pngs=tuple(_png(image) for image in shown.images[:]),
        )
        for task, seen in _tasks(run)
        if isinstance(shown := samples.get(task.name), ImageExamples)
    )
    return SampleGrid(rows=rows) if rows else None


def sample_table(run: Run, samples: Mapping[str, Examples]) -> Table | None:
    """Prompts and answers of every task that has some, seen tasks first; None without any."""
    rows = tuple(
        TableRow(
            cells=words(
                task.title if k == 0 else "",
                _shortened(shown.inputs[k]),
                _shortened(shown.targets[k]),
            ),
            starts_group=k == 0,
            detail=seen + _detail(task) if k == 0 else "",
        )
        for task, seen in _tasks(run)
        if isinstance(shown := samples.get(task.name), TextExamples)
        for k in range(min(_PROMPTS, len(shown)))
    )
    if not rows:
        return None
    return Table(
        name="samples",
        caption="Test examples of every task",
        header=("Task", "Prompt", "Answer"),
        rows=rows,
    )


def _tasks(run: Run) -> list[tuple[TaskInfo, str]]:
    seen = [(task, "") for task in run.manifest.tasks]
    return [*seen, *((task, "unseen; ") for task in run.manifest.unseen)]


def sample_sheet(grid: SampleGrid) -> bytes:
    """All samples as one PNG, a row per task in the grid's order, each pixel doubled."""
    rows = [[Image.open(io.BytesIO(png)) for png in row.pngs] for row in grid.rows]
    height = max(image.height for row in rows for image in row) * _SCALE + _GAP
    width = max(sum(image.width * _SCALE + _GAP for image in row) for row in rows)
    sheet = Image.new("RGB", (width - _GAP, height * len(rows) - _GAP), "white")
    for line, row in enumerate(rows):
        left = 0
        for image in row:
            size = (image.width * _SCALE, image.height * _SCALE)
            sheet.paste(image.resize(size, Image.Resampling.NEAREST), (left, line * height))
            left += size[0] + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _detail(task: TaskInfo) -> str:
    place = f"stands for {task.stands_for or 'none of the benchmarks of the paper'}"
    return place if task.classes is None else f"{place}; {task.classes} classes"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    shown = Image.fromarray(image)
    shown.thumbnail((_SIDE, _SIDE))
    shown.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
