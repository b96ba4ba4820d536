"""Scores: a model and examples in, per-example correctness out."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apgd.data import Examples
from apgd.suites import Suite

_BATCH = 128  # what stays in a core's cache; larger ones were a quarter slower on a CPU


class ImageEncoder(Protocol):
    """The part of open_clip's CLIP that scoring uses."""

    def encode_image(self, image: Tensor, normalize: bool) -> Tensor:
        """Images (n, 3, h, w) -> embeddings (n, width), of unit length where `normalize`."""


def logits(
    model: ImageEncoder,
    head: Tensor,  # (classes, width)
    pixels: Tensor,  # (n, 3, h, w)
) -> Tensor:  # (n, classes)
    """Cosine similarities with the text head's class vectors, times the head's scale."""
    return model.encode_image(pixels, normalize=True) @ head.T


@torch.inference_mode()
def correctness(
    model: nn.Module, head: Tensor, suite: Suite, examples: Examples
) -> np.ndarray:  # bool, (examples,)
    """Whether each example's most likely class is its label (top-1).

    Args:
        model: the encoder, on the device where it is to run.
        head: the task's zero-shot head (classes, width), on the same device.
        suite: knows how images are preprocessed.
        examples: what is classified.
    """
    model.eval()
    hits = []
    for start in range(0, len(examples), _BATCH):
        pixels = suite.preprocess(examples.images[start : start + _BATCH]).to(head.device)
        predicted = logits(model, head, pixels).argmax(dim=1)  # type: ignore[arg-type]
        hits.append(predicted.cpu().numpy() == examples.labels[start : start + _BATCH])
    return np.concatenate(hits)
