"""Printed digits and letters."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apgd.data.rendering.canvas import (
    Canvas,
    Colour,
    Pose,
    Rng,
    around,
    between,
    from_hsv,
    pick,
)
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = "0123456789"
_LETTERS = "BCEHKLMRSTXZ"
_MASK = 96  # side of a glyph's mask, in pixels


@lru_cache(maxsize=2048)
def glyph(text: str, font: str) -> Image.Image:
    """A text as grey levels, as large as fits into the middle of a square of 96 pixels."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", font)
    face = ImageFont.truetype(str(path), 72, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(text)
    # One size for all glyphs of a font would make digits small; longer texts are made to fit.
    room = 88 / max(right - left, bottom - top)
    face = face.font_variant(size=max(8, int(72 * room)))
    mask = Image.new("L", (_MASK, _MASK))
    ImageDraw.Draw(mask).text((_MASK / 2, _MASK / 2), text, fill=255, font=face, anchor="mm")
    return mask


def _draw_glyph(text: str, others: str, style: Style, rng: Rng) -> np.ndarray:
    pose = Pose.drawn(rng, style)
    pose = Pose(pose.turn, 0.68 * pose.size, pose.x, pose.y, pose.shear)
    font = pick(rng, style.fonts)
    ink: Colour = from_hsv(rng.random(), rng.random() * 5 * style.stray, between(rng, (0.75, 1.0)))
    canvas = Canvas(pose)
    canvas.stamp(glyph(text, font), ink)
    for side in (-1.0, 1.0):
        if rng.random() < style.neighbours:
            apart = side * between(rng, (1.35, 1.7)) * pose.size
            moved = Pose(
                pose.turn,
                pose.size,
                pose.x + apart,
                pose.y + around(rng, 0.1),
                pose.shear,
            )
            canvas.place(moved)
            canvas.stamp(glyph(pick(rng, others), font), ink)
    return canvas.pixels()


def _draw_digit(label: int, style: Style, rng: Rng) -> np.ndarray:
    return _draw_glyph(_DIGITS[label], _DIGITS, style, rng)


def _draw_letter(label: int, style: Style, rng: Rng) -> np.ndarray:
    return _draw_glyph(_LETTERS[label], _LETTERS, style, rng)


DIGITS = Subject(class_names=DIGIT_NAMES, draw=_draw_digit)
LETTERS = Subject(class_names=tuple(_LETTERS.lower()), draw=_draw_letter)
