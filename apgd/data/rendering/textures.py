"""Textures: two colours, and a pattern that says how much of which."""

# ruff: noqa: ARG001 - all patterns take the same arguments, and few need all of them

from collections.abc import Callable
from math import cos, pi, radians, sin

import numpy as np

from apgd.data.rendering.canvas import SIZE, Rng, around, between, from_hsv
from apgd.data.rendering.render import blotches
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

_FINE = 2  # supersampling per axis
_AXIS = (np.arange(SIZE * _FINE) + 0.5) / (SIZE * _FINE / 2) - 1.0

Array = np.ndarray
Pattern = Callable[[Array, Array, float, Rng], Array]
"""x, y (64, 64) in periods, periods per picture, rng -> share of the second colour, in [0, 1]."""


def _step(value: Array, soft: float = 0.25) -> Array:
    """From 0 to 1 as `value` goes from -soft to soft."""
    share: Array = np.clip(0.5 + value / (2 * soft), 0.0, 1.0)
    return share


def _cell(value: Array) -> Array:
    """Distance from the middle of the unit cell, in [0, 0.5]."""
    distance: Array = np.abs(value - np.floor(value) - 0.5)
    return distance


def _sites(x: Array, y: Array, periods: float, rng: Rng, jitter: float) -> tuple[Array, Array]:
    """Distances from the nearest and the second nearest of jittered lattice points."""
    reach = int(periods / 2) + 2
    grid = np.arange(-reach, reach + 1, dtype=np.float64)
    moved = jitter * (rng.random((2, len(grid), len(grid))) - 0.5)
    px, py = (grid[None, :] + moved[0]).ravel(), (grid[:, None] + moved[1]).ravel()
    # On half the points per axis: distances vary smoothly, and this is the costliest pattern.
    dx = x[::2, ::2, None] - px
    dy = y[::2, ::2, None] - py
    nearest = np.sqrt(np.partition(dx * dx + dy * dy, 1, axis=-1)[..., :2])
    both = nearest.repeat(2, axis=0).repeat(2, axis=1)
    return both[..., 0], both[..., 1]


def _striped(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    return _step(np.sin(2 * pi * x))


def _dotted(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    return _step(0.3 - np.hypot(_cell(x), _cell(y)), 0.06)


def _checkered(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    return _step(np.sin(pi * x) * np.sin(pi * y), 0.15)


def _zigzagged(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    return _step(np.sin(2 * pi * (y + 2.0 * _cell(0.6 * x))))


def _gridded(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    return _step(np.maximum(_cell(x), _cell(y)) - 0.38, 0.06)


def _spiralled(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    x0, y0 = around(rng, 0.2 * periods), around(rng, 0.2 * periods)
    dx, dy = x - x0, y - y0
    return _step(np.sin(2 * pi * np.hypot(dx, dy) + np.arctan2(dy, dx)))


def _marbled(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    bend = 1.6 * blotches(1, 6, 1, rng)[0, ..., 0].repeat(_FINE, axis=0).repeat(_FINE, axis=1)
    return _step(np.sin(2 * pi * (0.45 * x + bend)), 0.8)


def _cracked(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    near, second = _sites(0.75 * x, 0.75 * y, 0.75 * periods, rng, 0.9)
    return _step(0.09 - (second - near), 0.05)


def _bubbly(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    near, _ = _sites(0.9 * x, 0.9 * y, 0.9 * periods, rng, 0.5)
    return _step(0.1 - np.abs(near - 0.32), 0.05)


def _honeycombed(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    # Three families of lines at 60 degrees; a hexagon is where none of them is near its crest.
    total = sum(np.cos(2 * pi * 0.8 * (x * cos(a) + y * sin(a))) for a in (0.0, pi / 3, 2 * pi / 3))
    return _step(-0.9 - np.asarray(total), 0.25)


def _speckled(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    grains = rng.random((SIZE, SIZE)) < 0.22
    return grains.astype(np.float64).repeat(_FINE, axis=0).repeat(_FINE, axis=1)


def _blotchy(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    field = blotches(1, 8, 1, rng)[0, ..., 0]
    return _step(field.repeat(_FINE, axis=0).repeat(_FINE, axis=1), 0.08)


def _woven(x: Array, y: Array, periods: float, rng: Rng) -> Array:
    over = np.where((np.floor(x) + np.floor(y)) % 2 == 0, _cell(x), _cell(y))
    share: Array = np.clip(1.0 - 2.4 * over, 0.0, 1.0)
    return share


_PATTERNS: dict[str, Pattern] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzagged": _zigzagged,
    "gridded": _gridded,
    "spiralled": _spiralled,
    "marbled": _marbled,
    "cracked": _cracked,
    "bubbly": _bubbly,
    "honeycombed": _honeycombed,
    "speckled": _speckled,
    "blotchy": _blotchy,
    "woven": _woven,
}
_DRAWINGS = tuple(_PATTERNS.values())


def _draw_texture(label: int, style: Style, rng: Rng) -> np.ndarray:
    periods = between(rng, (3.2, 4.8)) / between(rng, style.size)
    turn = radians(3.0 * around(rng, style.turn))
    stretch = 1.0 + around(rng, 2.0 * style.shear)
    bend = style.shear * periods * blotches(1, 4, 2, rng)[0]
    bend = bend.repeat(_FINE, axis=0).repeat(_FINE, axis=1)
    right, down = 0.5 * periods * _AXIS[None, :], 0.5 * periods * _AXIS[:, None]
    x = stretch * (right * cos(turn) - down * sin(turn)) + rng.random() + bend[..., 0]
    y = (right * sin(turn) + down * cos(turn)) / stretch + rng.random() + bend[..., 1]
    share = _DRAWINGS[label](x, y, periods, rng)
    share = share.reshape(SIZE, _FINE, SIZE, _FINE).mean(axis=(1, 3))[..., None]
    hue = rng.random()
    dark = from_hsv(hue, between(rng, (0.2, 0.9)), between(rng, (0.1, 0.45)))
    light = from_hsv(
        hue + around(rng, 5 * style.stray), between(rng, (0.0, 0.8)), between(rng, (0.7, 1.0))
    )
    picture = np.full((SIZE, SIZE, 4), 255, dtype=np.uint8)
    picture[..., :3] = np.rint(share * light + (1.0 - share) * dark)
    return picture


TEXTURES = Subject(class_names=tuple(_PATTERNS), draw=_draw_texture)
