"""Data: a task and a split in, images and labels out."""

from apgd.data.tasks import Examples, Split, Task

__all__ = ["Examples", "Split", "Task"]
