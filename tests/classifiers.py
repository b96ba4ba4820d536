"""A small network with heads, experts of it and inputs: what test-time methods work on."""

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import ImageExamples
from apgd.models.zero_shot import ZeroShotHead
from apgd.unlabelled import UnlabelledInputs
from tests.conftest import State

SIDE = 3
WIDTH = SIDE * SIDE * 3
COUNT = 40


class Network(nn.Module):
    """Two merged matrices, a bias, a norm, and dropout that must not be on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 10)
        self.norm = nn.LayerNorm(10)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(10, 6, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(pixels)))
        scores: Tensor = self.second(self.drop(hidden))
        return scores


class LinearHead(ZeroShotHead):
    """Scores of a task's classes from the network's outputs."""

    def __init__(self, classes: Tensor) -> None:
        super().__init__(classes, _preprocess, lambda model, pixels: model(pixels))


def _preprocess(images: np.ndarray) -> Tensor:  # uint8 (n, side, side, 3) -> (n, width)
    return torch.from_numpy(images).float().flatten(1) / 255 - 0.5


def images(seed: int, count: int = COUNT) -> ImageExamples:
    """Noise with labels."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return ImageExamples(pixels, generator.integers(0, 4, count))


def experts(count: int = 3, size: float = 0.3) -> tuple[State, dict[str, State]]:
    """A base, and experts that differ from it by noise in every parameter."""
    torch.manual_seed(0)
    base = {name: tensor.clone() for name, tensor in Network().state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    return base, {
        f"expert{i}": {n: t + size * torch.randn(t.shape, generator=generator)
                       for n, t in base.items()}
        for i in range(count)
    }  # fmt: skip


def unlabelled(base: State, names: list[str]) -> UnlabelledInputs:
    """A model with the base's weights, and a head and inputs for every expert."""
    model = Network()
    model.load_state_dict(base)
    generator = torch.Generator().manual_seed(2)
    heads = {name: LinearHead(4 * torch.randn(4, 6, generator=generator)) for name in sorted(names)}
    inputs = {name: images(number).unlabelled() for number, name in enumerate(sorted(names))}
    return UnlabelledInputs(model, heads, inputs)
