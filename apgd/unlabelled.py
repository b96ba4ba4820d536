"""Inputs without labels, and what makes predictions of them: what test-time methods adapt on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from apgd.data import Examples
from apgd.heads import Head


@dataclass(frozen=True)
class UnlabelledInputs:
    """A model, and for every expert its task's head and inputs, whose labels nobody reads."""

    model: nn.Module
    """Of the base's architecture, on its device."""
    heads: Mapping[str, Head]
    """By expert, on the model's device."""
    inputs: Mapping[str, Examples]
    """By expert."""

    def identity(self) -> dict[str, Any]:
        """What tells these inputs from others."""
        return {name: examples.sha256 for name, examples in self.inputs.items()}
