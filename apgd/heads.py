"""What a task adds to a model: how its examples become a loss, and answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import Examples

Voice = Callable[[], nn.Module]
"""Puts one expert's weights into the suite's model, and gives the model; it holds them until the
next voice is called."""


class MakesLoss(Protocol):
    """What a training needs of a head."""

    def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        """The loss of some examples, a mean over them with equal weights."""


class Head(ABC):
    """One task's end of a model, frozen: made from the base once, and used with every expert.

    It is what makes suites of different kinds alike to whoever trains or scores.
    """

    @abstractmethod
    def to(self, device: str | torch.device) -> Self:
        """The same head on a device, where the model is."""

    def compiled(self) -> Self:
        """The same head, which answers by a compiled forward pass where it has one.

        It is meant for many models with the same architecture, and is on its device already.

        Raises:
            InputError: where torch cannot compile for this head's device here.
        """
        return self

    @abstractmethod
    def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        """The loss of some examples, a mean over them with equal weights.

        Args:
            model: the suite's model, on this head's device.
            examples: the suite's kind of examples.
            rows: int64 (batch,), which of the examples.
        """

    @abstractmethod
    def entropy(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        """The mean entropy of the predictions of some examples, in nats; it needs no answers.

        Args:
            model: the suite's model, on this head's device.
            examples: the suite's kind of examples, or of unlabelled inputs.
            rows: int64 (batch,), which of the examples.
        """

    @abstractmethod
    def log_likelihoods(self, model: nn.Module, examples: Any, row: int) -> Tensor:
        """What the model thinks of every choice it has at one example.

        Args:
            model: the suite's model, on this head's device.
            examples: the suite's kind of examples.
            row: which of the examples.

        Returns:
            Log-probabilities, float32 (positions, choices): of the classes, at one position; or of
            the tokens, at every position of the true answer after what comes before it there.
        """

    @abstractmethod
    def answers(self, model: nn.Module, examples: Any) -> np.ndarray:
        """One number per example, (examples,), whose mean is the task's score.

        For accuracy these are booleans, right or wrong; for other metrics see apgd.metrics.

        Args:
            model: the suite's model, on this head's device.
            examples: the suite's kind of examples.
        """

    @abstractmethod
    def ensemble_answers(self, voices: Sequence[Voice], examples: Any) -> np.ndarray:
        """As `answers`, of an ensemble: the mean of several models' probabilities decides.

        Args:
            voices: the models, each in the suite's model on this head's device.
            examples: the suite's kind of examples.
        """


@torch.inference_mode()
def judge(model: nn.Module, head: Head, examples: Examples) -> np.ndarray:
    """The head's `answers` of a model that is not being trained, (examples,)."""
    model.eval()
    return head.answers(model, examples)


def mean_entropy(
    scores: Tensor,  # (batch, classes)
) -> Tensor:  # ()
    """The mean over a batch of −Σ p log p in nats, p being the softmax of scores, in float32."""
    logarithms = nn.functional.log_softmax(scores.float(), dim=-1)
    return -(logarithms.exp() * logarithms).sum(dim=-1).mean()


@torch.inference_mode()
def judge_together(voices: Sequence[Voice], head: Head, examples: Examples) -> np.ndarray:
    """The head's `ensemble_answers` of models that are not being trained, (examples,)."""

    def quiet(voice: Voice) -> Voice:
        return lambda: voice().eval()

    return head.ensemble_answers([quiet(voice) for voice in voices], examples)
