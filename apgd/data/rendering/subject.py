"""A subject: classes, and how to draw one of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apgd.data.rendering.canvas import Rng
from apgd.data.rendering.style import Style


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that pictures can show, in several classes."""

    class_names: tuple[str, ...]
    """One name per class, in label order."""
    draw: Callable[[int, Style, Rng], np.ndarray]
    """Label, style, rng -> uint8 (32, 32, 4), colours multiplied by coverage."""
