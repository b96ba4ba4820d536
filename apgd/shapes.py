"""The shapes of a suite's model, known without its weights."""

import math
from functools import cache

import torch

from apgd.suites import Suite


def model_shapes(suite: Suite) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything in a model's state dict, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in _state(suite).items()}


def merged_shapes(suite: Suite) -> dict[str, tuple[int, int]]:
    """Names and shapes (m, n) of the matrices that a suite merges."""
    state = _state(suite).items()
    return {n: (t.shape[0], t.shape[1]) for n, t in state if suite.is_merged(n, t)}


def model_bytes(suite: Suite) -> int:
    """Size of one model of a suite in float32, in bytes."""
    return sum(4 * math.prod(shape) for shape in model_shapes(suite).values())


@cache
def _state(suite: Suite) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(suite.build_model().state_dict())
