"""From drawings to pictures: background, colours, blur and noise, a block at a time."""

import numpy as np

from apgd.data.rendering.canvas import SIZE, Rng
from apgd.data.rendering.style import Range, Style
from apgd.data.rendering.subject import Subject
from apgd.data.tasks import ImageExamples

_BLOCK = 250  # pictures that are developed together: few enough to stay in the processor's caches
_MIDDLE = 128.0


def render(subject: Subject, style: Style, count: int, rng: Rng) -> ImageExamples:
    """Pictures of a subject, each class as often as the others (to within one).

    All arithmetic is in float64 and rounded once, at the end.

    Args:
        subject: What is shown.
        style: How it looks.
        count: Number of pictures.
        rng: Source of everything random; the same state gives the same pictures.

    Returns:
        images (count, 32, 32, 3) in random order of classes, labels (count,).
    """
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(subject.class_names))
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, count, _BLOCK):
        block = labels[start : start + _BLOCK]
        drawings = np.stack([subject.draw(int(label), style, rng) for label in block])
        images[start : start + _BLOCK] = develop(drawings, style, rng)
    return ImageExamples(images, labels)


def develop(drawings: np.ndarray, style: Style, rng: Rng) -> np.ndarray:
    """Put drawings before a background and take their pictures in a style.

    Args:
        drawings: uint8 (n, 32, 32, 4), colours multiplied by coverage.
        style: How the pictures look.
        rng: Source of everything random.

    Returns:
        uint8 (n, 32, 32, 3).
    """
    n = len(drawings)

    def per_picture(bounds: Range) -> np.ndarray:  # (n, 1, 1, 1)
        return bounds[0] + (bounds[1] - bounds[0]) * rng.random((n, 1, 1, 1))

    cover = drawings[..., 3:] / 255.0  # (n, 32, 32, 1)
    ground = per_picture(style.ground) + per_picture(style.clutter) * blotches(n, 5, 3, rng)
    picture = drawings[..., :3] + (1.0 - cover) * ground  # (n, 32, 32, 3)
    if style.mixing is not None:
        picture = (picture[..., None, :] * np.array(style.mixing)).sum(axis=-1)
    picture += per_picture(style.mottle) * blotches(n, 9, 1, rng)
    picture = blurred(picture, per_picture(style.blur))
    gain = per_picture(style.contrast) * (1.0 + style.tint * (2.0 * rng.random((n, 1, 1, 3)) - 1.0))
    picture = _MIDDLE + gain * (picture - _MIDDLE) + per_picture(style.brightness)
    picture += per_picture(style.noise) * rng.standard_normal(picture.shape)
    final: np.ndarray = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return final


def blotches(n: int, coarse: int, channels: int, rng: Rng) -> np.ndarray:
    """Smooth random fields, (n, 32, 32, channels), from -1 to 1, `coarse` knots per axis."""
    knots = 2.0 * rng.random((n, coarse, coarse * channels)) - 1.0
    rise = _interpolation(coarse)  # (32, coarse)
    tall = np.matmul(rise, knots).reshape(n, SIZE, coarse, channels)
    smooth: np.ndarray = np.matmul(rise, tall)
    return smooth


def blurred(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Smoothed along both axes, either neighbour with `weight` (n, 1, 1, 1)."""
    for axis in (1, 2):
        before = np.take(picture, [0, *range(SIZE - 1)], axis=axis)
        after = np.take(picture, [*range(1, SIZE), SIZE - 1], axis=axis)
        picture = picture + weight * (before + after - 2.0 * picture)
    return picture


def _interpolation(coarse: int) -> np.ndarray:
    """Linear interpolation from `coarse` knots to the pixels: (32, coarse)."""
    position = np.linspace(0.0, coarse - 1.0, SIZE)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(coarse)))
