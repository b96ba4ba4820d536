"""Handwritten digits: the real ones of scikit-learn, and printed ones that look a little alike."""

from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from apgd.data.rendering.canvas import SIZE, Canvas, Pose, Rng, between, pick
from apgd.data.rendering.glyphs import DIGIT_NAMES, glyph
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject
from apgd.data.tasks import ImageExamples, Split

HANDWRITTEN_SIZES = {Split.TRAIN: 800, Split.VALIDATION: 200, Split.TEST: 797}
"""Examples of every split."""
_GRID = 8  # pixels per side of the digits that scikit-learn carries
_FRAME = 28  # pixels per side after enlarging, in the middle of the picture


def _enlarged(small: np.ndarray) -> np.ndarray:
    """Grey levels of a picture of `_GRID` pixels per side, enlarged: uint8 (32, 32)."""
    large = Image.fromarray(small).resize((_FRAME, _FRAME), Image.Resampling.BICUBIC)
    margin = (SIZE - _FRAME) // 2
    return np.pad(np.asarray(large), margin)


def split_rows(labels: np.ndarray, rng: Rng) -> dict[Split, np.ndarray]:
    """Which rows belong to which split; classes alike in all splits, no row in two.

    Args:
        labels: int64 (n,), one per row.
        rng: Source of the permutation.

    Returns:
        Row numbers by split, together a permutation of all rows.
    """
    order = rng.permutation(len(labels))
    # Rows of a class are spread evenly over [0, 1), so that any stretch of it is stratified.
    place = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    spread = order[np.argsort(place[order], kind="stable")]
    ends = np.cumsum([HANDWRITTEN_SIZES[split] for split in Split])
    return {
        split: rng.permutation(spread[end - HANDWRITTEN_SIZES[split] : end])
        for split, end in zip(Split, ends, strict=True)
    }


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return found.images, found.target.astype(np.int64)  # (1797, 8, 8) in [0, 16], (1797,)


def handwritten(split: Split, rng: Rng) -> ImageExamples:
    """A split of the 1,797 handwritten digits, white on black, enlarged to 32 pixels.

    Args:
        split: Which part.
        rng: Must be in the same state for every split, as it decides which row goes where.
    """
    grey, labels = _digits()
    rows = split_rows(labels, rng)[split]
    small = np.rint(np.clip(grey[rows] * (255.0 / 16.0), 0, 255)).astype(np.uint8)
    pictures = np.stack([_enlarged(one) for one in small])
    return ImageExamples(np.repeat(pictures[..., None], 3, axis=-1), labels[rows])


def _draw_imitation(label: int, style: Style, rng: Rng) -> np.ndarray:
    pose = Pose.drawn(rng, style)
    canvas = Canvas(Pose(pose.turn, 0.95 * pose.size, pose.x, pose.y, pose.shear))
    canvas.stamp(glyph(str(label), pick(rng, style.fonts)), (255, 255, 255))
    coarse = canvas.image.getchannel("A").resize((_GRID, _GRID), Image.Resampling.BOX)
    bright = np.minimum(np.asarray(coarse) * between(rng, (1.0, 1.6)), 255.0)
    grey = _enlarged(np.rint(bright).astype(np.uint8))
    return np.dstack((grey, grey, grey, np.full_like(grey, 255)))


IMITATIONS = Subject(class_names=DIGIT_NAMES, draw=_draw_imitation)
"""Printed digits on the coarse grid of the handwritten ones: what a base model may learn from."""
