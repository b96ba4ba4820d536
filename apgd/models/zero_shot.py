"""The zero-shot head: images are compared with one text vector per class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import ImageExamples, UnlabelledImages
from apgd.heads import Head, Voice, mean_entropy
from apgd.models.compilation import Encoder, check_compiler, compiled

_CPU_BATCH = 100  # from 64 to 128 alike; beyond a core's cache, at 200, a third slower
_GPU_BATCH = 256


@dataclass(frozen=True)
class ZeroShotHead(Head):
    """Cosine similarities with the frozen text vectors of a task's classes."""

    classes: Tensor
    """float32 (classes, width): unit vectors times the logit scale."""
    preprocess: Callable[[np.ndarray], Tensor]
    """Images as the model takes them: uint8 (n, h, w, 3) -> float32 (n, 3, h, w)."""
    encode: Encoder
    """Unit embeddings of such images by the model's own forward pass, in which layers that are
    trained or observed get all of their inputs."""
    shortcut: Encoder | None = None
    """The same up to rounding with less work, where there is such a way."""
    program: Encoder | None = None
    """The shorter way, compiled for whole batches."""

    def to(self, device: str | torch.device) -> Self:
        """The same head with its class vectors on a device."""
        return replace(self, classes=self.classes.to(device))

    def compiled(self) -> Self:
        """The same head; whole batches of what it answers go through a compiled forward pass.

        Raises:
            InputError: where torch cannot compile for this head's device here.
        """
        check_compiler(self.classes.device.type)
        return replace(self, program=compiled(self.shortcut or self.encode))

    def logits(self, model: nn.Module, images: np.ndarray) -> Tensor:
        """Scaled similarities, (n, classes), of uint8 images (n, h, w, 3)."""
        return self._logits(self.encode, model, images)

    def _logits(self, encode: Encoder, model: nn.Module, images: np.ndarray) -> Tensor:
        pixels = self.preprocess(images).to(self.classes.device)
        return encode(model, pixels) @ self.classes.T

    def loss(self, model: nn.Module, examples: ImageExamples, rows: np.ndarray) -> Tensor:
        """Mean cross entropy of the labels."""
        scores = self.logits(model, examples.images[rows])
        labels = torch.from_numpy(examples.labels[rows]).to(scores.device)
        return nn.functional.cross_entropy(scores.float(), labels)

    def entropy(
        self, model: nn.Module, examples: ImageExamples | UnlabelledImages, rows: np.ndarray
    ) -> Tensor:
        """Mean entropy of the classes' probabilities."""
        encode = self.shortcut or self.encode
        return mean_entropy(self._logits(encode, model, examples.images[rows]))

    def log_likelihoods(self, model: nn.Module, examples: ImageExamples, row: int) -> Tensor:
        """Log-probabilities of the classes, (1, classes)."""
        return self.logits(model, examples.images[np.array([row])]).float().log_softmax(dim=1)

    def answers(self, model: nn.Module, examples: ImageExamples) -> np.ndarray:
        """Whether each image's most likely class is its label, bool (examples,)."""
        predicted = [
            self._judged(model, examples.images[part]).argmax(dim=1).cpu().numpy()
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
                chances = self._judged(model, examples.images[part]).double().softmax(dim=1)
                total[part] += chances.cpu().numpy()
        right: np.ndarray = total.argmax(axis=1) == examples.labels
        return right

    def _judged(self, model: nn.Module, images: np.ndarray) -> Tensor:
        """As `logits`, in the quickest way for so many images."""
        encode = self.shortcut or self.encode
        # What is left over is few, and a program for its number would have to be compiled too.
        if self.program is not None and len(images) == self._batch:
            encode = self.program
        return self._logits(encode, model, images)

    @property
    def _batch(self) -> int:
        return _CPU_BATCH if self.classes.device.type == "cpu" else _GPU_BATCH

    def _parts(self, examples: ImageExamples) -> list[slice]:
        """Consecutive examples that go through the model together."""
        batch = self._batch
        return [slice(start, start + batch) for start in range(0, len(examples), batch)]
