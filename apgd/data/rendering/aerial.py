"""Things on the ground, seen from above."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from apgd.data.rendering.canvas import (
    Canvas,
    Colour,
    Point,
    Pose,
    Rng,
    between,
    count,
    from_hsv,
    pick,
    stray,
)
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

_GRASS: Colour = (95, 130, 75)
_SOIL: Colour = (150, 130, 100)
_TARMAC: Colour = (105, 105, 110)
_WATER: Colour = (50, 90, 135)
_PALE: Colour = (225, 225, 220)


class _Site:
    """A canvas with ground on it, turned any way round."""

    def __init__(self, style: Style, rng: Rng, ground: Colour | None = None) -> None:
        self.style = style
        self.rng = rng
        usual = pick(rng, (_GRASS, _SOIL, _TARMAC)) if ground is None else ground
        pose = Pose.drawn(rng, style)
        self.canvas = Canvas(
            Pose(360.0 * rng.random(), pose.size, pose.x, pose.y), fill=stray(rng, usual, style)
        )

    def colour(self, usual: Colour) -> Colour:
        return stray(self.rng, usual, self.style)

    def strip(self, half: float, colour: Colour, at: float = 0.0) -> None:
        self.canvas.box(-2.0, at - half, 2.0, at + half, colour)

    def dashes(self, colour: Colour, at: float = 0.0, half: float = 0.03) -> None:
        for k in range(-5, 6):
            self.canvas.box(0.32 * k, at - half, 0.32 * k + 0.17, at + half, colour)


def _airplane(site: _Site) -> None:
    c, paint = site.canvas, site.colour(_PALE)
    c.polygon(((-0.7, -0.1), (0.55, -0.1), (0.8, 0.0), (0.55, 0.1), (-0.7, 0.1)), paint)
    c.polygon(((0.25, 0.0), (-0.2, -0.8), (-0.4, -0.8), (-0.12, 0.0)), paint)
    c.polygon(((0.25, 0.0), (-0.2, 0.8), (-0.4, 0.8), (-0.12, 0.0)), paint)
    c.polygon(((-0.5, 0.0), (-0.72, -0.32), (-0.84, -0.32), (-0.84, 0.32), (-0.72, 0.32)), paint)


def _stadium(site: _Site) -> None:
    c = site.canvas
    c.disc(0.0, 0.0, 0.82, site.colour(_PALE), tall=0.78)
    c.disc(0.0, 0.0, 0.62, site.colour((180, 90, 70)), tall=0.72)
    c.disc(0.0, 0.0, 0.46, site.colour((60, 140, 60)), tall=0.66)


def _runway(site: _Site) -> None:
    half = between(site.rng, (0.25, 0.36))
    site.strip(half, site.colour((85, 85, 90)))
    site.dashes(_PALE, half=0.05)
    for edge in (-half, half):
        site.strip(0.03, _PALE, edge)


def _railway(site: _Site) -> None:
    site.strip(0.32, site.colour((125, 110, 95)))
    for k in range(-7, 8):
        site.canvas.box(0.19 * k, -0.26, 0.19 * k + 0.08, 0.26, (70, 55, 45))
    for rail in (-0.14, 0.14):
        site.strip(0.035, (195, 195, 200), rail)


def _intersection(site: _Site) -> None:
    half, road = between(site.rng, (0.2, 0.3)), site.colour(_TARMAC)
    site.strip(half, road)
    site.canvas.box(-half, -2.0, half, 2.0, road)
    site.strip(0.025, _PALE)
    site.canvas.box(-0.025, -2.0, 0.025, 2.0, _PALE)
    site.canvas.box(-half, -half, half, half, road)


def _roundabout(site: _Site) -> None:
    road = site.colour(_TARMAC)
    site.strip(0.16, road)
    site.canvas.box(-0.16, -2.0, 0.16, 2.0, road)
    site.canvas.disc(0.0, 0.0, 0.62, road)
    site.canvas.disc(0.0, 0.0, 0.34, site.colour(_GRASS))


def _parking(site: _Site) -> None:
    site.strip(2.0, site.colour((120, 120, 125)))
    for row in (-0.75, -0.25, 0.25, 0.75):
        for k in range(-4, 5):
            if site.rng.random() < 0.75:
                paint = from_hsv(site.rng.random(), 0.6 * site.rng.random(), 0.9)
                site.canvas.box(0.26 * k, row - 0.17, 0.26 * k + 0.17, row + 0.17, paint)


def _bridge(site: _Site) -> None:
    site.strip(2.0, site.colour(_WATER))
    half = between(site.rng, (0.14, 0.22))
    for end in (-1.0, 1.0):
        bank = site.colour(_GRASS)
        near = end * between(site.rng, (0.6, 0.8))
        site.canvas.polygon(((near, -2.0), (near, 2.0), (2.0 * end, 2.0), (2.0 * end, -2.0)), bank)
    site.strip(half + 0.06, site.colour(_PALE))
    site.strip(half, site.colour(_TARMAC))


def _harbor(site: _Site) -> None:
    site.strip(2.0, site.colour(_WATER))
    site.canvas.box(-2.0, -2.0, 2.0, -0.62, site.colour(_TARMAC))
    for x in (-0.6, 0.0, 0.6):
        site.canvas.box(x - 0.05, -0.7, x + 0.05, 0.75, site.colour((165, 145, 115)))
        for y in (-0.35, 0.0, 0.35):
            for side in (-1.0, 1.0):
                if site.rng.random() < 0.8:
                    a, b = x + 0.08 * side, x + 0.26 * side
                    boat: tuple[Point, ...] = ((a, y - 0.1), (b, y), (a, y + 0.1))
                    site.canvas.polygon(boat, _PALE)


def _court(site: _Site) -> None:
    c, inside = site.canvas, site.colour(pick(site.rng, ((60, 110, 160), (170, 90, 60))))
    c.box(-0.9, -0.6, 0.9, 0.6, site.colour((70, 125, 85)))
    c.box(-0.7, -0.42, 0.7, 0.42, _PALE)
    for left, right in ((-0.65, -0.36), (-0.31, -0.03), (0.03, 0.31), (0.36, 0.65)):
        c.box(left, -0.37, right, -0.03, inside)
        c.box(left, 0.03, right, 0.37, inside)


def _tanks(site: _Site) -> None:
    for x in (-0.5, 0.1, 0.7):
        for y in (-0.42, 0.3):
            if site.rng.random() < 0.85:
                radius = between(site.rng, (0.2, 0.29))
                site.canvas.disc(x + 0.05, y + 0.05, radius, (60, 60, 60))
                site.canvas.disc(x, y, radius, site.colour(_PALE))


def _crosswalk(site: _Site) -> None:
    half = between(site.rng, (0.5, 0.62))
    site.strip(half, site.colour((90, 90, 95)))
    for k in range(4):
        y = -half + half * (2 * k + 0.5) / 4
        site.canvas.box(-0.3, y, 0.3, y + 0.25 * half, _PALE)


def _turbine(site: _Site) -> None:
    for x, y in ((-0.1, 0.0), *(((0.75, 0.6),) if site.rng.random() < 0.4 else ())):
        start, paint = site.rng.random(), site.colour(_PALE)
        for k in range(3):
            a = 2 * pi * (start + k / 3)
            site.canvas.line(((x, y), (x + 0.7 * cos(a), y + 0.7 * sin(a))), 0.11, paint)
        site.canvas.disc(x, y, 0.12, paint)


def _ship(site: _Site) -> None:
    site.strip(2.0, site.colour(_WATER))
    length, half = between(site.rng, (0.65, 0.85)), between(site.rng, (0.16, 0.24))
    hull = ((-length, -half), (0.6 * length, -half), (length, 0.0), (0.6 * length, half))
    site.canvas.polygon((*hull, (-length, half)), site.colour((140, 70, 60)))
    for k in range(count(site.rng, 2, 4)):
        x = -0.5 + 0.3 * k
        load = from_hsv(site.rng.random(), 0.6, 0.85)
        site.canvas.box(x, -0.6 * half, x + 0.2, 0.6 * half, load)
    site.canvas.polygon(((-length, 0.0), (-1.6, -0.25), (-1.6, 0.25)), (150, 180, 205))


_SITES: dict[str, tuple[Callable[[_Site], None], Colour | None]] = {
    "airplane": (_airplane, None),
    "stadium": (_stadium, None),
    "runway": (_runway, None),
    "railway": (_railway, None),
    "intersection": (_intersection, None),
    "roundabout": (_roundabout, None),
    "parking lot": (_parking, _TARMAC),
    "bridge": (_bridge, _WATER),
    "harbor": (_harbor, _WATER),
    "tennis court": (_court, None),
    "storage tanks": (_tanks, None),
    "crosswalk": (_crosswalk, None),
    "wind turbine": (_turbine, None),
    "ship": (_ship, _WATER),
}
_DRAWINGS = tuple(_SITES.values())


def _draw_site(label: int, style: Style, rng: Rng) -> np.ndarray:
    draw, ground = _DRAWINGS[label]
    site = _Site(style, rng, ground)
    draw(site)
    return site.canvas.pixels()


AERIAL = Subject(class_names=tuple(_SITES), draw=_draw_site)
