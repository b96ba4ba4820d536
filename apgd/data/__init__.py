"""Data: a task and a split in, examples out."""

from apgd.data.tasks import (
    Examples,
    ImageExamples,
    Metric,
    Split,
    Task,
    TextExamples,
    Unlabelled,
    UnlabelledImages,
    UnlabelledTexts,
)

__all__ = [
    "Examples",
    "ImageExamples",
    "Metric",
    "Split",
    "Task",
    "TextExamples",
    "Unlabelled",
    "UnlabelledImages",
    "UnlabelledTexts",
]
