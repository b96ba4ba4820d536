"""The shape of a suite."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from apgd.data import Examples, Split, Task
from apgd.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How one expert is fine-tuned from the base."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples per step."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly; a cosine to zero follows."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    checkpoint_every: int = 50
    """Steps between checkpoints from which a killed expert resumes."""


class Suite(ABC):
    """A base model, the tasks that its experts learn, and how they are judged."""

    name: str
    """Identifier on the command line."""
    title: str
    """One line for people."""
    tasks: tuple[Task, ...]
    """Tasks with an expert each, in the order in which tables show them."""
    unseen: tuple[Task, ...]
    """Tasks that no expert sees."""
    corrupted: tuple[str, ...]
    """Names of the tasks whose test images are also shown corrupted."""
    finetune: FinetuneSettings
    """How this suite's experts are fine-tuned."""

    @abstractmethod
    def base_path(self) -> Path:
        """The base model's weights, a safetensors file."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A fresh model of the base's architecture, weights not yet loaded."""

    @abstractmethod
    def preprocess(self, images: np.ndarray) -> Tensor:
        """Images as the model takes them: uint8 (n, h, w, 3) -> float32 (n, 3, h, w)."""

    @abstractmethod
    def zero_shot_head(self, model: nn.Module, task: Task) -> Tensor:
        """The frozen text head of a task: unit vectors (classes, width) times the logit scale."""

    @abstractmethod
    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether the parameter `name` is one of the matrices that are merged."""

    @abstractmethod
    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split.

        Raises:
            InputError: for an unknown task or split, or where the data are not what was pinned.
        """

    @abstractmethod
    def has_examples(self, task: str, split: Split) -> bool:
        """Whether a split is ready on this machine, so that reading it is quick."""

    def task(self, name: str) -> Task:
        """The task called `name`, seen or unseen."""
        for task in (*self.tasks, *self.unseen):
            if task.name == name:
                return task
        known = ", ".join(task.name for task in (*self.tasks, *self.unseen))
        raise InputError(f"unknown task {name!r} of suite {self.name}; known are: {known}")
