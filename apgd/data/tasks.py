"""What a task is: its classes, its prompts, and its examples by split."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol, Self

import numpy as np

from apgd.errors import InputError

_HASHED = 256  # images at a time
_PART_SEED = 0


class Split(StrEnum):
    """Which part of a task's examples is meant.

    Experts learn from TRAIN, every choice is made on VALIDATION, and TEST is read once, at the end.
    """

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Metric(StrEnum):
    """How a task's answers are judged."""

    ACCURACY = "accuracy"
    """Share of the examples answered exactly right."""
    SPEARMAN = "spearman"
    """Spearman's rank correlation of the numbers that were answered with the true ones."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a suite."""

    name: str
    """Identifier on the command line and in file names, lower case."""
    title: str
    """Name for people."""
    stands_for: str | None
    """The benchmark of the paper whose place this task takes, if any."""
    class_names: tuple[str, ...]
    """One name per class, in label order; of a text task the words that are answers."""
    templates: tuple[str, ...] = ()
    """Prompt templates of the zero-shot head, each with one `{}` for the class name; none for a
    text task, whose examples are whole prompts."""
    metric: Metric = Metric.ACCURACY
    """How answers are judged."""


class Unlabelled(ABC):
    """Inputs alone: the answers that belong to them cannot be reached from here."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of inputs."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of the inputs, in hexadecimal, on which answers have no influence."""


class Examples(ABC):
    """Inputs with the answers that belong to them."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of the content, in hexadecimal."""

    @abstractmethod
    def first(self, count: int) -> Self:
        """The first `count` examples (all of them where there are fewer)."""

    @abstractmethod
    def at(self, rows: np.ndarray) -> Self:
        """The examples in these rows, int64 (n,), in ascending order."""

    def part(self, share: float) -> Self:
        """A share of the examples, drawn once for all; what a smaller share has, a larger one has.

        At least one of them; all, as they are, where the share is 1.
        """
        count = min(len(self), max(1, round(share * len(self))))
        if count == len(self):
            return self
        order = np.random.default_rng(_PART_SEED).permutation(len(self))
        return self.at(np.sort(order[:count]))

    @abstractmethod
    def unlabelled(self) -> Unlabelled:
        """The inputs without their answers."""


class Pixels(Protocol):
    """Images as an array, or as something that decodes what is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, height, width, 3)."""

    @property
    def dtype(self) -> np.dtype:
        """uint8."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some of the images: uint8 (n, height, width, 3)."""


@dataclass(frozen=True)
class PickedPixels:
    """Some of the images of others, read when they are asked for."""

    images: Pixels
    rows: np.ndarray
    """int64 (n,), which of the images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, 3)."""
        return (len(self.rows), *self.images.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return self.images.dtype

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some of the images: uint8 (n, height, width, 3)."""
        return self.images[self.rows[rows]]


def _check_images(images: Pixels) -> None:
    shape = tuple(images.shape)
    if images.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            f"images must be uint8 of shape (n, h, w, 3), but got {images.dtype} {shape}"
        )


@dataclass(frozen=True)
class UnlabelledImages(Unlabelled):
    """Images without labels."""

    images: Pixels
    """uint8, (examples, height, width, 3)."""

    def __post_init__(self) -> None:
        _check_images(self.images)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the images' bytes; that of what they are decoded from covers labels too."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _HASHED):
            digest.update(np.ascontiguousarray(self.images[start : start + _HASHED]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class UnlabelledTexts(Unlabelled):
    """Prompts without answers."""

    inputs: tuple[str, ...]
    """Whole prompts."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.inputs)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the prompts, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.inputs).encode()).hexdigest()


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Images with labels."""

    images: Pixels
    """uint8, (examples, height, width, 3)."""
    labels: np.ndarray
    """int64, (examples,)."""
    source_sha256: str | None = None
    """Hash of what the images are decoded from, in place of that of all pixels."""

    def __post_init__(self) -> None:
        _check_images(self.images)
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise InputError(
                f"labels must be int64 of shape ({len(self.images)},), "
                f"but got {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the images' bytes, or of their source, followed by the labels' bytes."""
        if self.source_sha256 is None:
            digest = hashlib.sha256(np.ascontiguousarray(self.images[:]).data)
        else:
            digest = hashlib.sha256(self.source_sha256.encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def first(self, count: int) -> "ImageExamples":
        """The first `count` examples (all of them where there are fewer)."""
        if count >= len(self):
            return self  # which knows its hash without reading every pixel
        return ImageExamples(self.images[:count], self.labels[:count])

    def at(self, rows: np.ndarray) -> "ImageExamples":
        """The images in these rows, with their labels."""
        return ImageExamples(PickedPixels(self.images, rows), self.labels[rows])

    def unlabelled(self) -> UnlabelledImages:
        """The images alone."""
        return UnlabelledImages(self.images)


@dataclass(frozen=True)
class TextExamples(Examples):
    """Prompts with the texts that answer them."""

    inputs: tuple[str, ...]
    """Whole prompts."""
    targets: tuple[str, ...]
    """The answers, word for word."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise InputError(
                f"each prompt must have one answer, but there are {len(self.inputs)} prompts and "
                f"{len(self.targets)} answers"
            )

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.inputs)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of prompts and answers, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.inputs, self.targets]).encode()).hexdigest()

    def first(self, count: int) -> "TextExamples":
        """The first `count` examples (all of them where there are fewer)."""
        return TextExamples(self.inputs[:count], self.targets[:count])

    def at(self, rows: np.ndarray) -> "TextExamples":
        """The prompts in these rows, with their answers."""
        return TextExamples(
            tuple(self.inputs[row] for row in rows), tuple(self.targets[row] for row in rows)
        )

    def unlabelled(self) -> UnlabelledTexts:
        """The prompts alone."""
        return UnlabelledTexts(self.inputs)
