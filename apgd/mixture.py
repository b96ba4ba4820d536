"""Joint multi-task training: the examples of several tasks as one set, and their heads as one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import Examples
from apgd.heads import Head
from apgd.suites import FinetuneSettings

MULTI_TASK = "multi_task"
"""What the model that learned all tasks together is called."""


def joint_settings(settings: FinetuneSettings, tasks: int) -> FinetuneSettings:
    """How one model learns as many tasks together: N times the steps of one expert.

    Batches keep their size and every task is seen equally often, so the model sees of each task as
    many examples as that task's own expert, and the whole takes as long as all experts. Warm-up and
    decay, which are shares of the steps, stretch with them.

    Args:
        settings: how one expert is fine-tuned.
        tasks: N.
    """
    return replace(settings, steps=settings.steps * tasks)


def joint_sha256(hashes: Sequence[str]) -> str:
    """The hash of several sets of examples, in this order, from those of the sets."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def mixture_rows(
    step: int, batch_size: int, counts: Sequence[int], seed: int
) -> np.ndarray:  # int64 (batch,)
    """The examples of one step, drawn from several tasks in turn.

    Over any number of steps no task is seen more than once more often than another; each goes
    through its examples epoch after epoch, every epoch in an order of its own. A function of its
    arguments alone, so that a resumed training sees what it would have seen.

    Args:
        step: 0, 1, ...
        batch_size: examples of a step.
        counts: how many examples each task has.
        seed: of the orders.

    Returns:
        Rows of the tasks' examples laid end to end.
    """
    turns = np.arange(step * batch_size, (step + 1) * batch_size)
    positions, tasks = np.divmod(turns, len(counts))
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = np.empty(batch_size, np.int64)
    for task in np.unique(tasks):
        mine = tasks == task
        epochs, places = np.divmod(positions[mine], counts[task])
        drawn = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            order = _order(counts[task], seed * len(counts) + int(task), int(epoch))
            drawn[epochs == epoch] = order[places[epochs == epoch]]
        rows[mine] = starts[task] + drawn
    return rows


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: np.ndarray = torch.randperm(count, generator=generator).numpy()
    return order


@dataclass(frozen=True)
class Mixture:
    """The examples of several tasks, laid end to end."""

    parts: tuple[Examples, ...]
    """One set per task."""

    def __len__(self) -> int:
        """Examples of all tasks."""
        return sum(map(len, self.parts))

    @property
    def sha256(self) -> str:
        """Hash of the content, in hexadecimal."""
        return joint_sha256([part.sha256 for part in self.parts])

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each task, int64 (tasks,)."""
        return np.cumsum([0, *map(len, self.parts[:-1])])


@dataclass(frozen=True)
class MixtureHead:
    """The heads of several tasks, as one that makes a loss."""

    heads: tuple[Head, ...]
    """In the order of the mixture's tasks."""

    def loss(self, model: nn.Module, examples: Mixture, rows: np.ndarray) -> Tensor:
        """The mean of the examples' losses, each from its own task's head.

        Args:
            model: on the heads' device.
            examples: of the same tasks.
            rows: int64 (batch,), of the mixture.
        """
        tasks = np.searchsorted(examples.starts, rows, side="right") - 1
        losses = []
        for task in np.unique(tasks):
            own = rows[tasks == task] - examples.starts[task]
            mean = self.heads[task].loss(model, examples.parts[task], own)
            losses.append(mean * (len(own) / len(rows)))
        return torch.stack(losses).sum()
