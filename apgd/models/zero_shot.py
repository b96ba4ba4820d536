"""The zero-shot head: images are compared with one text vector per class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import ImageExamples, UnlabelledImages
from apgd.heads import Head, Voice, mean_entropy

_CPU_BATCH = 128  # what stays in a core's cache; larger ones were a quarter slower
_GPU_BATCH = 256


@dataclass(frozen=True)
class ZeroShotHead(Head):
    """Cosine similarities with the frozen text vectors of a task's classes."""

    classes: Tensor
    """float32 (classes, width): unit vectors times the logit scale."""
    preprocess: Callable[[np.ndarray], Tensor]
    """Images as the model takes them: uint8 (n, h, w, 3) -> float32 (n, 3, h, w)."""
    encode: Callable[[nn.Module, Tensor], Tensor]
    """Unit embeddings of such images: model, (n, 3, h, w) -> (n, width)."""

    def to(self, device: str | torch.device) -> Self:
        """The same head with its class vectors on a device."""
        return replace(self, classes=self.classes.to(device))

    def logits(self, model: nn.Module, images: np.ndarray) -> Tensor:
        """Scaled similarities, (n, classes), of uint8 images (n, h, w, 3)."""
        pixels = self.preprocess(images).to(self.classes.device)
        return self.encode(model, pixels) @ self.classes.T

    def loss(self, model: nn.Module, examples: ImageExamples, rows: np.ndarray) -> Tensor:
        """Mean cross entropy of the labels."""
        scores = self.logits(model, examples.images[rows])
        labels = torch.from_numpy(examples.labels[rows]).to(scores.device)
        return nn.functional.cross_entropy(scores.float(), labels)

    def entropy(
        self, model: nn.Module, examples: ImageExamples | UnlabelledImages, rows: np.ndarray
    ) -> Tensor:
        """Mean entropy of the classes' probabilities."""
        return mean_entropy(self.logits(model, examples.images[rows]))

    def log_likelihoods(self, model: nn.Module, examples: ImageExamples, row: int) -> Tensor:
        """Log-probabilities of the classes, (1, classes)."""
        return self.logits(model, examples.images[np.array([row])]).float().log_softmax(dim=1)

    def answers(self, model: nn.Module, examples: ImageExamples) -> np.ndarray:
        """Whether each image's most likely class is its label, bool (examples,)."""
        predicted = [
            self.logits(model, examples.images[part]).argmax(dim=1).cpu().numpy()
            for part in self._parts(examples)
        ]
        right: np.ndarray = np.concatenate(predicted) == examples.labels
        return right

    def ensemble_answers(self, voices: Sequence[Voice], examples: ImageExamples) -> np.ndarray:
        """Whether the class with the largest mean of the models' softmax is the label."""
        total = np.zeros((len(examples), len(self.classes)))
        for voice in voices:
            model = voice()
            for part in self._parts(examples):
                # In double precision even the closest logits keep their order.
                chances = self.logits(model, examples.images[part]).double().softmax(dim=1)
                total[part] += chances.cpu().numpy()
        right: np.ndarray = total.argmax(axis=1) == examples.labels
        return right

    def _parts(self, examples: ImageExamples) -> list[slice]:
        """Consecutive examples that go through the model together."""
        batch = _CPU_BATCH if self.classes.device.type == "cpu" else _GPU_BATCH
        return [slice(start, start + batch) for start in range(0, len(examples), batch)]
