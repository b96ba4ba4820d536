"""Evidence for the small models of tests: statistics and unlabelled inputs that fit them."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import ImageExamples
from apgd.evidence import NO_EVIDENCE, Evidence, Need
from apgd.heads import Head
from apgd.methods import Method
from apgd.unlabelled import UnlabelledInputs

_COUNT = 40


class Linears(nn.Module):
    """Every matrix of a state dict maps the inputs' first features to logits of its own."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().float().clone()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (n, features) -> logits (n, rows of all matrices)."""
        matrices = [p for _, p in sorted(self.named_parameters()) if p.ndim == 2]
        return torch.cat([inputs[:, : m.shape[1]] @ m.T for m in matrices], dim=1)


class LinearsHead(Head):
    """The logits themselves, between pixels and classes."""

    def __init__(self, turn: int) -> None:
        self.turn = turn  # tasks look at the pixels in different orders

    def to(self, device: str | torch.device) -> Self:
        return self

    def logits(self, model: nn.Module, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).float().flatten(1) / 255
        found: Tensor = model(pixels.roll(self.turn, dims=1))
        return found

    def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        labels = torch.from_numpy(examples.labels[rows])
        return nn.functional.cross_entropy(self.logits(model, examples.images[rows]), labels)

    def entropy(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        logs = self.logits(model, examples.images[rows]).log_softmax(dim=1)
        return -(logs.exp() * logs).sum(dim=1).mean()

    def log_likelihoods(self, model: nn.Module, examples: Any, row: int) -> Tensor:
        return self.logits(model, examples.images[row : row + 1]).log_softmax(dim=1)

    def ensemble_answers(self, voices: Any, examples: Any) -> np.ndarray:
        raise NotImplementedError("nothing here asks an ensemble")

    def answers(self, model: nn.Module, examples: Any) -> np.ndarray:
        predicted = self.logits(model, examples.images[:]).argmax(dim=1)
        found: np.ndarray = predicted.numpy() == examples.labels
        return found


def images(seed: int, features: int) -> ImageExamples:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (_COUNT, 1, features // 3, 3), dtype=np.uint8)
    return ImageExamples(pixels, rng.integers(0, 5, _COUNT))


def evidence_for(method: Method, base: Mapping[str, Tensor], experts: Iterable[str]) -> Evidence:
    """What the method needs, made up for a base whose matrices have at most 15 columns."""
    experts = sorted(experts)
    shapes = {name: tensor.shape for name, tensor in base.items() if tensor.ndim == 2}
    # By the expert's name: the same for it in any order and company.
    seeds = {expert: sum(expert.encode()) for expert in experts}
    generators = {expert: torch.Generator().manual_seed(seeds[expert]) for expert in experts}
    if method.needs is Need.FISHER:
        return Evidence(
            statistics={
                expert: {n: torch.rand(s, generator=generators[expert]) for n, s in shapes.items()}
                for expert in experts
            }
        )
    if method.needs is Need.GRAM:
        made = {
            expert: {
                n: torch.randn(30, s[1], generator=generators[expert]) for n, s in shapes.items()
            }
            for expert in experts
        }
        return Evidence(
            statistics={
                expert: {n: x.T @ x / len(x) for n, x in inputs.items()}
                for expert, inputs in made.items()
            }
        )
    if method.needs is Need.INPUTS:
        return Evidence(
            inputs=UnlabelledInputs(
                model=Linears(base),
                heads={expert: LinearsHead(seeds[expert] % 15) for expert in experts},
                inputs={expert: images(seeds[expert], 15).unlabelled() for expert in experts},
            )
        )
    return NO_EVIDENCE
