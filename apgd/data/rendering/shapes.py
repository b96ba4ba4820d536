"""Plain geometric shapes."""

from math import cos, pi, sin

import numpy as np

from apgd.data.rendering.canvas import Canvas, Point, Pose, Rng, between, from_hsv
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject


def regular(corners: int, radius: float, start: float = -0.5) -> list[Point]:
    """A regular polygon; its first corner at `start` half turns (top by default)."""
    return [
        (radius * cos(pi * (start + 2 * k / corners)), radius * sin(pi * (start + 2 * k / corners)))
        for k in range(corners)
    ]


def arrow(length: float, width: float) -> list[Point]:
    """An arrow that points to the right, centred."""
    return [
        (-length, -0.35 * width),
        (0.1 * length, -0.35 * width),
        (0.1 * length, -width),
        (length, 0.0),
        (0.1 * length, width),
        (0.1 * length, 0.35 * width),
        (-length, 0.35 * width),
    ]


def _star() -> list[Point]:
    outer, inner = regular(5, 0.75), regular(5, 0.32, start=-0.3)
    return [corner for pair in zip(outer, inner, strict=True) for corner in pair]


def _cross() -> list[Point]:
    a, b = 0.24, 0.7
    return [
        (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
        (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
    ]  # fmt: skip


def _heart() -> list[Point]:
    points = []
    for k in range(32):
        t = 2 * pi * k / 32
        x = 16 * sin(t) ** 3
        y = 13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)
        points.append((0.044 * x, -0.044 * y - 0.05))
    return points


def _crescent() -> list[Point]:
    outer = [(0.7 * cos(a), 0.7 * sin(a)) for a in (pi * (0.25 + 1.5 * k / 20) for k in range(21))]
    inner = [
        (0.35 + 0.51 * cos(a), 0.51 * sin(a))
        for a in (pi * (1.6 - 1.2 * k / 20) for k in range(21))
    ]
    return outer + inner


def _ring() -> list[Point]:
    turns = [2 * pi * k / 32 for k in range(33)]
    outer = [(0.7 * cos(a), 0.7 * sin(a)) for a in turns]
    inner = [(0.4 * cos(a), 0.4 * sin(a)) for a in reversed(turns)]
    return outer + inner


_OUTLINES: dict[str, list[Point]] = {
    "circle": regular(32, 0.7),
    "square": regular(4, 0.85, start=0.25),
    "triangle": regular(3, 0.8),
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "crescent": _crescent(),
    "arrow": arrow(0.75, 0.5),
    "pentagon": regular(5, 0.75),
    "ring": _ring(),
}


def _draw_shape(label: int, style: Style, rng: Rng) -> np.ndarray:
    canvas = Canvas(Pose.drawn(rng, style))
    ink = from_hsv(rng.random(), rng.random() * 5 * style.stray, between(rng, (0.75, 1.0)))
    canvas.polygon(list(_OUTLINES.values())[label], ink)
    return canvas.pixels()


SHAPES = Subject(class_names=tuple(_OUTLINES), draw=_draw_shape)
