"""Sample images of the tasks."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from apgd.errors import InputError
from tune.report.document import SampleGrid, Samples
from tune.report.manifest import TaskInfo
from tune.report.run import Run

_SCALE = 2
_GAP = 4  # pixels between images


def sample_grid(run: Run, samples: Mapping[str, np.ndarray]) -> SampleGrid | None:
    """A row per task that has samples, seen tasks first; None where no task has any.

    Raises:
        InputError: when a task's samples are not uint8 (k, height, width, 3).
    """
    tasks = [
        *((task, "") for task in run.manifest.tasks),
        *((task, "unseen; ") for task in run.manifest.unseen),
    ]
    rows = tuple(
        Samples(
            title=task.title,
            detail=seen + _detail(task),
            pngs=tuple(_png(image) for image in _checked(task.name, samples[task.name])),
        )
        for task, seen in tasks
        if task.name in samples
    )
    return SampleGrid(rows=rows) if rows else None


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


def _checked(name: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"samples of {name!r} must be uint8 of shape (k, height, width, 3), "
            f"but got {images.dtype} {images.shape}"
        )
    return images


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
