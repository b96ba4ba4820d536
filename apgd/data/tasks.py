"""What a task is: its classes, its prompts, and its examples by split."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from apgd.errors import InputError


class Split(StrEnum):
    """Which part of a task's examples is meant.

    Experts learn from TRAIN, every choice is made on VALIDATION, and TEST is read once, at the end.
    """

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One classification task of a suite."""

    name: str
    """Identifier on the command line and in file names, lower case."""
    title: str
    """Name for people."""
    stands_for: str | None
    """The benchmark of the paper whose place this task takes, if any."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    templates: tuple[str, ...]
    """Prompt templates of the zero-shot head, each with one `{}` for the class name."""


@dataclass(frozen=True)
class Examples:
    """Images with labels."""

    images: np.ndarray
    """uint8, (examples, height, width, 3)."""
    labels: np.ndarray
    """int64, (examples,)."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise InputError(
                f"images must be uint8 of shape (n, h, w, 3), "
                f"but got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels must be int64 of shape ({len(self.images)},), "
                f"but got {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the images' bytes followed by the labels' bytes, in hexadecimal."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def first(self, count: int) -> "Examples":
        """The first `count` examples (all of them where there are fewer)."""
        return Examples(self.images[:count], self.labels[:count])
