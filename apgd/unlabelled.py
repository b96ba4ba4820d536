"""Inputs without labels, and what makes predictions of them: what test-time methods adapt on."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from apgd.batches import batch_indices
from apgd.data import Unlabelled
from apgd.errors import InputError
from apgd.heads import Head


@dataclass(frozen=True)
class UnlabelledInputs:
    """A model, and for every expert its task's head and inputs, whose labels nobody can read.

    Raises:
        InputError: on construction, where heads and inputs are not of the same experts, inputs hold
            labels (`Examples.unlabelled` takes them off), or there are none.
    """

    model: nn.Module
    """Of the base's architecture, on its device. An adaptation puts other weights into it and
    leaves it as it was."""
    heads: Mapping[str, Head]
    """By expert, on the model's device."""
    inputs: Mapping[str, Unlabelled]
    """By expert."""
    label: str = ""
    """What they are of, for example suite and split: it goes into summaries, and tells heads of
    other suites apart."""
    report: Callable[[int, int], None] | None = None
    """Called after every step of an adaptation with the steps done and their total."""

    def __post_init__(self) -> None:
        if set(self.heads) != set(self.inputs):
            raise InputError(
                f"heads and inputs must be of the same experts, but got heads of "
                f"{sorted(self.heads)} and inputs of {sorted(self.inputs)}"
            )
        for name, inputs in self.inputs.items():
            if not isinstance(inputs, Unlabelled):
                raise InputError(
                    f"inputs to adapt on must be without labels, but those of {name} are "
                    f"{type(inputs).__name__}"
                )
            if len(inputs) == 0:
                raise InputError(f"inputs to adapt on must not be empty, but those of {name} are")

    def identity(self) -> dict[str, Any]:
        """What tells these inputs from others."""
        return {"of": self.label} | {name: x.sha256 for name, x in self.inputs.items()}

    def batch(self, name: str, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Which inputs of an expert's task a step sees, int64 (batch_size,) or all if fewer.

        Every task has an order of its own, which depends on its expert's name, the seed and the
        step alone, not on which other experts there are.
        """
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        own = int.from_bytes(digest[:5], "big")
        return batch_indices(step, batch_size, len(self.inputs[name]), own).numpy()
