"""Landscapes and places, seen from the ground."""

from collections.abc import Callable
from math import pi, sin

import numpy as np

from apgd.data.rendering.canvas import (
    Canvas,
    Colour,
    Point,
    Pose,
    Rng,
    around,
    between,
    count,
    pick,
    shade,
    stray,
)
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

_SKY: Colour = (135, 185, 235)
_SEA: Colour = (40, 95, 160)
_SAND: Colour = (225, 205, 145)
_GRASS: Colour = (85, 140, 60)
_LEAVES: Colour = (40, 95, 45)
_BARK: Colour = (95, 65, 40)
_STONE: Colour = (115, 110, 105)
_SNOW: Colour = (240, 242, 248)
_ROAD: Colour = (75, 75, 80)
_DARK: Colour = (18, 20, 45)


class _View:
    """A canvas with a sky, a horizon and a style."""

    def __init__(self, style: Style, rng: Rng, sky: Colour, horizon: float) -> None:
        self.style = style
        self.rng = rng
        self.horizon = horizon + around(rng, style.shift)
        # Slightly enlarged, so that a tilted picture shows no corner of the paper.
        pose = Pose(around(rng, 0.5 * style.turn), 1.0, around(rng, style.shift), 0.0)
        self.canvas = Canvas(pose, fill=stray(rng, sky, style))

    def colour(self, usual: Colour) -> Colour:
        return stray(self.rng, usual, self.style)

    def land(self, colour: Colour, top: float, bottom: float = 2.0) -> None:
        self.canvas.box(-2.0, top, 2.0, bottom, self.colour(colour))

    def hills(self, colour: Colour, top: float, height: float) -> None:
        phase, waves = self.rng.random() * 2 * pi, between(self.rng, (1.0, 2.5))
        crest: list[Point] = []
        for k in range(17):
            x = -1.6 + 3.2 * k / 16
            crest.append((x, top - height * (0.5 + 0.5 * sin(waves * pi * x + phase))))
        self.canvas.polygon([*crest, (1.6, 2.0), (-1.6, 2.0)], self.colour(colour))

    def tree(self, x: float, foot: float, size: float) -> None:
        self.canvas.box(x - 0.06 * size, foot - 0.5 * size, x + 0.06 * size, foot, _BARK)
        self.canvas.disc(x, foot - 0.7 * size, 0.34 * size, self.colour(_LEAVES), tall=1.3)

    def fir(self, x: float, foot: float, size: float) -> None:
        colour = self.colour(_LEAVES)
        for level in range(3):
            half, top = (0.3 - 0.07 * level) * size, foot - (0.35 + 0.3 * level) * size
            self.canvas.polygon(
                (
                    (x - half, top + 0.25 * size),
                    (x + half, top + 0.25 * size),
                    (x, top - 0.2 * size),
                ),
                colour,
            )


def _beach(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, -0.25)
    view.land(_SEA, view.horizon)
    view.land(_SAND, view.horizon + between(rng, (0.3, 0.55)))
    x, foot = around(rng, 0.6), between(rng, (0.5, 0.8))
    view.canvas.line(((x, foot), (x, foot - 0.6)), 0.05, _BARK)
    top = foot - 0.65
    view.canvas.polygon(
        (
            (x - 0.35, top + 0.15),
            (x - 0.2, top - 0.05),
            (x + 0.2, top - 0.05),
            (x + 0.35, top + 0.15),
        ),
        view.colour((220, 60, 60)),
    )
    return view.canvas


def _forest(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, shade(_SKY, 0.8), 0.3)
    view.land(shade(_LEAVES, 0.9), view.horizon - 0.6)
    view.land(shade(_GRASS, 0.7), view.horizon)
    for _ in range(count(rng, 6, 9)):
        view.tree(around(rng, 1.0), between(rng, (0.2, 0.9)), between(rng, (0.8, 1.3)))
    return view.canvas


def _city(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, shade(_SKY, 0.95), 0.6)
    left = -1.1
    while left < 1.1:
        width, top = between(rng, (0.3, 0.5)), between(rng, (-0.8, 0.1))
        wall = view.colour(shade(_STONE, between(rng, (0.6, 1.2))))
        view.canvas.box(left, top, left + width, 1.0, wall)
        window = pick(rng, (shade(wall, 0.5), (245, 225, 150)))
        y = top + 0.1
        while y < 0.5:
            for x in (left + 0.07, left + 0.5 * width + 0.02):
                view.canvas.box(x, y, x + 0.3 * width, y + 0.1, window)
            y += 0.24
        left += width + between(rng, (0.0, 0.08))
    view.land(_ROAD, view.horizon)
    return view.canvas


def _mountain(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, 0.55)
    for _ in range(count(rng, 2, 3)):
        x, top, half = around(rng, 0.7), between(rng, (-0.8, -0.3)), between(rng, (0.7, 1.0))
        foot = 0.7
        view.canvas.polygon(((x - half, foot), (x, top), (x + half, foot)), view.colour(_STONE))
        cap = 0.3 * (foot - top)
        slope = half / (foot - top)
        view.canvas.polygon(
            ((x - cap * slope, top + cap), (x, top), (x + cap * slope, top + cap)), _SNOW
        )
    view.land(_GRASS, view.horizon)
    return view.canvas


def _desert(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, (235, 215, 170), 0.0)
    view.hills((225, 170, 95), view.horizon, 0.3)
    view.hills((205, 145, 75), view.horizon + 0.35, 0.3)
    if rng.random() < 0.6:
        x, foot, green = around(rng, 0.6), between(rng, (0.4, 0.7)), view.colour((70, 115, 65))
        view.canvas.line(((x, foot), (x, foot - 0.7)), 0.13, green)
        view.canvas.line(
            ((x - 0.2, foot - 0.55), (x - 0.2, foot - 0.3), (x, foot - 0.3)), 0.1, green
        )
    return view.canvas


def _highway(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, -0.05)
    view.land(pick(rng, (_GRASS, _SAND, shade(_GRASS, 0.8))), view.horizon)
    x, wide = around(rng, 0.3), between(rng, (0.6, 0.9))
    top = view.horizon
    road = view.colour(_ROAD)
    view.canvas.polygon(((x - 0.06, top), (x + 0.06, top), (wide, 1.3), (-wide, 1.3)), road)
    for near, far in ((0.95, 0.6), (0.45, 0.28), (0.2, 0.1)):
        span = 1.3 - top
        view.canvas.polygon(
            (
                (x * (1 - far) - 0.05 * far, top + span * far),
                (x * (1 - far) + 0.05 * far, top + span * far),
                (x * (1 - near) + 0.06 * near, top + span * near),
                (x * (1 - near) - 0.06 * near, top + span * near),
            ),
            (240, 235, 210),
        )
    return view.canvas


def _sea(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, -0.05)
    view.land(_SEA, view.horizon)
    for _ in range(4):
        x, y = around(rng, 0.9), view.horizon + between(rng, (0.1, 0.9))
        view.canvas.line(((x - 0.2, y), (x + 0.2, y)), 0.03, view.colour((120, 170, 215)))
    x, y, size = (
        around(rng, 0.5),
        view.horizon + between(rng, (0.05, 0.3)),
        between(rng, (0.8, 1.2)),
    )
    hull = ((x - 0.3 * size, y - 0.1), (x + 0.3 * size, y - 0.1), (x + 0.2 * size, y + 0.1))
    view.canvas.polygon((*hull, (x - 0.2 * size, y + 0.1)), view.colour((120, 60, 45)))
    view.canvas.polygon(
        ((x, y - 0.13), (x, y - 0.75 * size), (x + 0.32 * size, y - 0.18)), view.colour(_SNOW)
    )
    return view.canvas


def _farm(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, -0.05)
    view.land((150, 150, 65), view.horizon)
    furrow = view.colour((115, 105, 45))
    middle = around(rng, 0.4)
    for k in range(-5, 6):
        view.canvas.line(((middle + 0.12 * k, view.horizon), (middle + 0.5 * k, 1.2)), 0.04, furrow)
    x, foot, wall = around(rng, 0.6), view.horizon + 0.12, view.colour((165, 50, 40))
    view.canvas.box(x - 0.25, foot - 0.35, x + 0.25, foot, wall)
    roof = ((x - 0.32, foot - 0.33), (x, foot - 0.6), (x + 0.32, foot - 0.33))
    view.canvas.polygon(roof, shade(wall, 0.6))
    return view.canvas


def _night(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _DARK, 0.55)
    for _ in range(count(rng, 10, 18)):
        view.canvas.disc(around(rng, 1.0), between(rng, (-1.0, 0.5)), 0.035, (235, 235, 215))
    if rng.random() < 0.6:
        x, y = around(rng, 0.7), between(rng, (-0.7, -0.2))
        view.canvas.disc(x, y, between(rng, (0.12, 0.2)), (245, 240, 210))
    view.hills((12, 16, 22), view.horizon, 0.3)
    return view.canvas


def _snowfield(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, (190, 200, 215), 0.0)
    view.hills(_SNOW, view.horizon, 0.15)
    for _ in range(count(rng, 1, 3)):
        view.fir(around(rng, 0.8), between(rng, (0.2, 0.6)), between(rng, (0.6, 0.9)))
    for _ in range(count(rng, 8, 14)):
        view.canvas.disc(around(rng, 1.0), around(rng, 1.0), 0.04, (255, 255, 255))
    return view.canvas


def _waterfall(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, -0.55)
    view.land((85, 80, 70), view.horizon)
    for side in (-1.0, 1.0):
        for _ in range(3):
            x, y = side * between(rng, (0.5, 1.0)), between(rng, (-0.6, 0.5))
            view.canvas.disc(x, y, between(rng, (0.15, 0.3)), view.colour(shade(_LEAVES, 1.1)))
    x, half = around(rng, 0.3), between(rng, (0.14, 0.26))
    view.land((60, 115, 150), 0.6)
    fall = ((x - half, view.horizon), (x + half, view.horizon))
    view.canvas.polygon((*fall, (x + 1.2 * half, 0.75), (x - 1.2 * half, 0.75)), (225, 236, 245))
    view.canvas.disc(x, 0.72, 1.7 * half, (235, 240, 248), tall=0.35)
    return view.canvas


def _bridge(style: Style, rng: Rng) -> Canvas:
    view = _View(style, rng, _SKY, 0.35)
    view.land(_SEA, view.horizon)
    steel, deck = view.colour((160, 70, 55)), view.horizon - between(rng, (0.1, 0.3))
    middle, top = around(rng, 0.2), deck - between(rng, (0.6, 0.8))
    for side in (-1.0, 1.0):
        x = middle + 0.55 * side
        view.canvas.box(x - 0.06, top, x + 0.06, view.horizon + 0.15, steel)
        view.canvas.line(((x, top), (middle + 1.6 * side, deck)), 0.04, steel)
        view.canvas.line(((x, top), (x - 0.3 * side, deck - 0.15), (middle, deck)), 0.04, steel)
    view.canvas.box(-2.0, deck - 0.06, 2.0, deck + 0.06, steel)
    return view.canvas


_PLACES: dict[str, Callable[[Style, Rng], Canvas]] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "mountain": _mountain,
    "desert": _desert,
    "highway": _highway,
    "sea": _sea,
    "farm": _farm,
    "night sky": _night,
    "snowfield": _snowfield,
    "waterfall": _waterfall,
    "bridge": _bridge,
}
_DRAWINGS = tuple(_PLACES.values())


def _draw_scene(label: int, style: Style, rng: Rng) -> np.ndarray:
    canvas = _DRAWINGS[label](style, rng)
    # Things that stand about and belong to no class.
    for _ in range(count(rng, 0, 2)):
        canvas.disc(around(rng, 0.9), around(rng, 0.9), between(rng, (0.05, 0.12)), _STONE)
    return canvas.pixels()


SCENES = Subject(class_names=tuple(_PLACES), draw=_draw_scene)
