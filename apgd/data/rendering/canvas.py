"""A small supersampled canvas, and the random choices that drawings share."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, radians, sin
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from apgd.data.rendering.style import Range, Style

SIZE = 32
"""Height and width of a picture, in pixels."""
SCALE = 3
"""Supersampling per axis while drawing."""

Colour = tuple[int, int, int]
Point = tuple[float, float]
Rng = np.random.Generator
T = TypeVar("T")

_CIRCLE = tuple((cos(2 * pi * k / 24), sin(2 * pi * k / 24)) for k in range(24))


def between(rng: Rng, bounds: Range) -> float:
    """A number drawn uniformly between two bounds."""
    low, high = bounds
    return low + (high - low) * rng.random()


def around(rng: Rng, spread: float) -> float:
    """A number drawn uniformly from -spread to spread."""
    return spread * (2.0 * rng.random() - 1.0)


def pick(rng: Rng, items: Sequence[T]) -> T:
    """One of `items`, all equally likely."""
    return items[int(rng.random() * len(items))]


def count(rng: Rng, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def from_hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue (in turns), saturation and value, the latter two clipped to [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def stray(rng: Rng, colour: Colour, style: Style, share: float = 1.0) -> Colour:
    """A colour near `colour`, as far off as the style lets colours stray (times `share`)."""
    far = 255.0 * style.stray * share
    red, green, blue = (min(max(round(c + around(rng, far)), 0), 255) for c in colour)
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor below one) or lighter version of a colour."""
    red, green, blue = (min(max(round(c * factor), 0), 255) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class Pose:
    """Where a drawing's own coordinates come to lie: mirrored, scaled, slanted, turned, moved."""

    turn: float = 0.0
    """Degrees, clockwise on the screen."""
    size: float = 1.0
    x: float = 0.0
    y: float = 0.0
    shear: float = 0.0
    mirrored: bool = False

    @staticmethod
    def drawn(rng: Rng, style: Style, *, mirror: bool = False) -> "Pose":
        """A pose as the style has it; mirrored half of the time if `mirror`."""
        return Pose(
            around(rng, style.turn),
            between(rng, style.size),
            around(rng, style.shift),
            around(rng, style.shift),
            around(rng, style.shear),
            mirror and rng.random() < 0.5,
        )

    def matrix(self) -> tuple[float, float, float, float]:
        """The linear part, row by row."""
        c, s = self.size * cos(radians(self.turn)), self.size * sin(radians(self.turn))
        flip = -1.0 if self.mirrored else 1.0
        return c * flip, c * self.shear - s, s * flip, s * self.shear + c


class Canvas:
    """A transparent square from (-1, -1), top left, to (1, 1), on which to draw in a pose."""

    def __init__(self, pose: Pose | None = None, fill: Colour | None = None) -> None:
        self.side = SIZE * SCALE
        self.image = Image.new(
            "RGBA", (self.side, self.side), (0, 0, 0, 0) if fill is None else (*fill, 255)
        )
        self._draw = ImageDraw.Draw(self.image)
        self.place(pose or Pose())

    def place(self, pose: Pose) -> None:
        """Draw in another pose from now on."""
        half = self.side / 2
        self._xx, self._xy, self._yx, self._yy = (half * entry for entry in pose.matrix())
        self._x, self._y = half * (1 + pose.x), half * (1 + pose.y)
        self._unit = half * pose.size

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [
            (self._xx * x + self._xy * y + self._x, self._yx * x + self._yy * y + self._y)
            for x, y in points
        ]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._pixels(points), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle, sides parallel to the pose's axes."""
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """An open line through the points; `width` in the pose's units."""
        self._draw.line(
            self._pixels(points),
            fill=colour,
            width=max(1, round(width * self._unit)),
            joint="curve",
        )

    def disc(self, x: float, y: float, radius: float, colour: Colour, tall: float = 1.0) -> None:
        """A filled circle, or an ellipse `tall` times as high as it is wide."""
        self.polygon([(x + radius * c, y + radius * tall * s) for c, s in _CIRCLE], colour)

    def stamp(self, mask: Image.Image, colour: Colour) -> None:
        """A square mask of single-channel grey levels that covers the pose's whole square."""
        # Pillow wants the inverse map: from the canvas's pixels to the mask's.
        det = self._xx * self._yy - self._xy * self._yx
        ratio = mask.width / 2
        a, b = ratio * self._yy / det, -ratio * self._xy / det
        d, e = -ratio * self._yx / det, ratio * self._xx / det
        placed = mask.transform(
            self.image.size,
            Image.Transform.AFFINE,
            (
                a,
                b,
                ratio - a * self._x - b * self._y,
                d,
                e,
                ratio - d * self._x - e * self._y,
            ),
            Image.Resampling.BILINEAR,
        )
        layer = Image.new("RGBA", self.image.size, colour)
        layer.putalpha(placed)
        self.image.alpha_composite(layer)

    def pixels(self) -> np.ndarray:
        """The drawing at final size: uint8 (32, 32, 4), colours multiplied by coverage."""
        small = self.image.convert("RGBa").reduce(SCALE)
        return np.asarray(small)
