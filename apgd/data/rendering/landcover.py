"""Land cover, seen from a satellite."""

from collections.abc import Callable
from math import pi, sin

import numpy as np

from apgd.data.rendering.canvas import (
    Canvas,
    Colour,
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

_CROP: Colour = (150, 150, 80)
_BARE: Colour = (165, 135, 100)
_MEADOW: Colour = (105, 150, 70)
_HEATH: Colour = (120, 130, 85)
_TREES: Colour = (45, 85, 45)
_WATER: Colour = (35, 65, 105)
_ROAD: Colour = (150, 148, 145)
_ROOF: Colour = (175, 120, 100)
_HALL: Colour = (205, 205, 210)

_GROUNDS = (_CROP, _BARE, _MEADOW, _HEATH)


class _Tile:
    """A canvas of land, turned any way round."""

    def __init__(self, style: Style, rng: Rng, ground: Colour) -> None:
        self.style = style
        self.rng = rng
        self.base = stray(rng, ground, style)
        self.canvas = Canvas(
            Pose(360.0 * rng.random(), between(rng, style.size), 0.0, 0.0), fill=self.base
        )

    def colour(self, usual: Colour) -> Colour:
        return stray(self.rng, usual, self.style)

    def band(self, half: float, bend: float, colour: Colour) -> None:
        """A band across the tile; `bend` is how far it meanders."""
        phase, waves = self.rng.random() * 2 * pi, between(self.rng, (0.7, 1.3))
        at = around(self.rng, 0.4)
        middle = [
            (x, at + bend * sin(waves * pi * x + phase)) for x in (k / 6 - 1.5 for k in range(19))
        ]
        upper = [(x, y - half) for x, y in middle]
        lower = [(x, y + half) for x, y in reversed(middle)]
        self.canvas.polygon(upper + lower, colour)


def _annual_crop(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, pick(rng, (_CROP, _BARE)))
    cut = around(rng, 0.4)
    for left, right in ((-1.5, cut), (cut, 1.5)):
        top = -1.5
        while top < 1.5:
            bottom = top + between(rng, (0.5, 1.1))
            field = tile.colour(pick(rng, (_CROP, _BARE, _CROP, _MEADOW)))
            tile.canvas.box(left, top, right, bottom, field)
            top = bottom
    return tile.canvas


def _forest(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, _TREES)
    for _ in range(45):
        tone = shade(tile.base, between(rng, (0.6, 1.5)))
        tile.canvas.disc(around(rng, 1.2), around(rng, 1.2), 0.09, tone)
    return tile.canvas


def _herbs(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, _HEATH)
    for _ in range(count(rng, 9, 14)):
        tone = shade(tile.base, between(rng, (0.7, 1.3)))
        radius = between(rng, (0.15, 0.4))
        tile.canvas.disc(around(rng, 1.2), around(rng, 1.2), radius, tone, tall=0.6)
    return tile.canvas


def _highway(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, pick(rng, _GROUNDS))
    tile.band(between(rng, (0.07, 0.12)), between(rng, (0.0, 0.08)), tile.colour(_ROAD))
    if rng.random() < 0.5:
        x = around(rng, 0.6)
        tile.canvas.line(((x, -1.5), (x + around(rng, 0.6), 1.5)), 0.09, tile.colour(_ROAD))
    return tile.canvas


def _industrial(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, (135, 130, 125))
    for x in (-0.7, 0.25):
        for y in (-0.75, 0.2):
            wide, tall = between(rng, (0.45, 0.75)), between(rng, (0.4, 0.75))
            if rng.random() < 0.85:
                tile.canvas.box(x, y, x + wide, y + tall, tile.colour(_HALL))
    return tile.canvas


def _pasture(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, _MEADOW)
    hedge = tile.colour(shade(_TREES, 1.1))
    for _ in range(count(rng, 1, 2)):
        y = around(rng, 0.8)
        tile.canvas.line(((-1.5, y), (1.5, y + around(rng, 0.5))), 0.05, hedge)
    if rng.random() < 0.5:
        tile.canvas.disc(around(rng, 0.7), around(rng, 0.7), 0.1, hedge)
    return tile.canvas


def _permanent_crop(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, pick(rng, (_BARE, _HEATH)))
    plant, step = tile.colour(_TREES), between(rng, (0.26, 0.36))
    for row in range(-5, 6):
        for k in range(-5, 6):
            tile.canvas.disc(step * k, step * row, 0.33 * step, plant)
    return tile.canvas


def _residential(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, (125, 130, 105))
    road = tile.colour(_ROAD)
    for at in (-0.8, 0.0, 0.8):
        tile.canvas.box(-1.5, at - 0.06, 1.5, at + 0.06, road)
        for k in range(-5, 5):
            for side in (-0.27, 0.15):
                if rng.random() < 0.8:
                    x, y = 0.28 * k + around(rng, 0.04), at + side
                    tile.canvas.box(x, y, x + 0.17, y + 0.15, tile.colour(_ROOF))
    return tile.canvas


def _river(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, pick(rng, _GROUNDS))
    tile.band(between(rng, (0.12, 0.24)), between(rng, (0.18, 0.4)), tile.colour(_WATER))
    return tile.canvas


def _lake(style: Style, rng: Rng) -> Canvas:
    tile = _Tile(style, rng, _WATER)
    if rng.random() < 0.6:
        shore = between(rng, (0.4, 0.9))
        land = ((-1.6, shore + around(rng, 0.2)), (1.6, shore + around(rng, 0.2)))
        tile.canvas.polygon((*land, (1.6, 1.6), (-1.6, 1.6)), tile.colour(pick(rng, _GROUNDS)))
    return tile.canvas


_COVERS: dict[str, Callable[[Style, Rng], Canvas]] = {
    "annual crop": _annual_crop,
    "forest": _forest,
    "herbaceous vegetation": _herbs,
    "highway": _highway,
    "industrial buildings": _industrial,
    "pasture": _pasture,
    "permanent crop": _permanent_crop,
    "residential buildings": _residential,
    "river": _river,
    "sea lake": _lake,
}
_DRAWINGS = tuple(_COVERS.values())


def _draw_cover(label: int, style: Style, rng: Rng) -> np.ndarray:
    return _DRAWINGS[label](style, rng).pixels()


LANDCOVER = Subject(class_names=tuple(_COVERS), draw=_draw_cover)
