"""Traffic signs."""

from collections.abc import Callable

import numpy as np

from apgd.data.rendering.canvas import Canvas, Colour, Pose, Rng, pick, stray
from apgd.data.rendering.glyphs import glyph
from apgd.data.rendering.shapes import arrow, regular
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

_RED: Colour = (205, 35, 40)
_BLUE: Colour = (30, 80, 180)
_WHITE: Colour = (240, 240, 240)
_YELLOW: Colour = (245, 200, 40)
_BLACK: Colour = (25, 25, 28)
_GREY: Colour = (130, 130, 135)
_RADIUS = 0.78


class _Plate:
    """A canvas in the pose of the sign."""

    def __init__(self, style: Style, rng: Rng) -> None:
        self.style = style
        self.rng = rng
        self.pose = Pose.drawn(rng, style)
        self.canvas = Canvas(self.pose)

    def colour(self, usual: Colour) -> Colour:
        return stray(self.rng, usual, self.style, share=0.7)

    def text(self, text: str, size: float, colour: Colour, down: float = 0.0) -> None:
        pose = self.pose
        self.canvas.place(
            Pose(pose.turn, size * pose.size, pose.x, pose.y + down * pose.size, pose.shear)
        )
        self.canvas.stamp(glyph(text, pick(self.rng, self.style.fonts)), colour)
        self.canvas.place(pose)


def _stop(plate: _Plate) -> None:
    plate.canvas.polygon(regular(8, _RADIUS + 0.04, start=0.125), _WHITE)
    plate.canvas.polygon(regular(8, _RADIUS - 0.04, start=0.125), plate.colour(_RED))
    plate.text("STOP", 0.6, _WHITE)


def _no_entry(plate: _Plate) -> None:
    plate.canvas.disc(0.0, 0.0, _RADIUS, plate.colour(_RED))
    plate.canvas.box(-0.55, -0.14, 0.55, 0.14, _WHITE)


def _yield(plate: _Plate) -> None:
    plate.canvas.polygon(regular(3, 0.9, start=0.5), plate.colour(_RED))
    plate.canvas.polygon(regular(3, 0.52, start=0.5), _WHITE)


def _priority(plate: _Plate) -> None:
    plate.canvas.polygon(regular(4, 0.9), _WHITE)
    plate.canvas.polygon(regular(4, 0.68), plate.colour(_YELLOW))


def _limit(figures: str) -> Callable[[_Plate], None]:
    def draw(plate: _Plate) -> None:
        plate.canvas.disc(0.0, 0.0, _RADIUS, plate.colour(_RED))
        plate.canvas.disc(0.0, 0.0, 0.56, _WHITE)
        plate.text(figures, 0.46, _BLACK)

    return draw


def _pointing(turn: float) -> Callable[[_Plate], None]:
    def draw(plate: _Plate) -> None:
        plate.canvas.disc(0.0, 0.0, _RADIUS, plate.colour(_BLUE))
        pose = plate.pose
        plate.canvas.place(Pose(pose.turn + turn, pose.size, pose.x, pose.y, pose.shear))
        plate.canvas.polygon(arrow(0.55, 0.4), _WHITE)

    return draw


def _lettered(letter: str) -> Callable[[_Plate], None]:
    def draw(plate: _Plate) -> None:
        plate.canvas.box(-0.66, -0.66, 0.66, 0.66, plate.colour(_BLUE))
        plate.text(letter, 0.52, _WHITE)

    return draw


def _warning(mark: str) -> Callable[[_Plate], None]:
    def draw(plate: _Plate) -> None:
        plate.canvas.polygon(regular(3, 0.92), plate.colour(_RED))
        plate.canvas.polygon(regular(3, 0.6), _WHITE)
        plate.text(mark, 0.3, _BLACK, down=0.08)

    return draw


def _end_of_limits(plate: _Plate) -> None:
    plate.canvas.disc(0.0, 0.0, _RADIUS, _GREY)
    plate.canvas.disc(0.0, 0.0, 0.68, _WHITE)
    plate.canvas.line(((-0.45, 0.45), (0.45, -0.45)), 0.16, _BLACK)


def _no_parking(plate: _Plate) -> None:
    plate.canvas.disc(0.0, 0.0, _RADIUS, plate.colour(_RED))
    plate.canvas.disc(0.0, 0.0, 0.6, plate.colour(_BLUE))
    plate.canvas.line(((-0.45, -0.45), (0.45, 0.45)), 0.15, plate.colour(_RED))


_SIGNS: dict[str, Callable[[_Plate], None]] = {
    "stop": _stop,
    "no entry": _no_entry,
    "yield": _yield,
    "priority road": _priority,
    "speed limit twenty": _limit("20"),
    "speed limit fifty": _limit("50"),
    "speed limit eighty": _limit("80"),
    "turn left": _pointing(180.0),
    "turn right": _pointing(0.0),
    "straight ahead": _pointing(-90.0),
    "parking": _lettered("P"),
    "hospital": _lettered("H"),
    "danger": _warning("!"),
    "crossing": _warning("X"),
    "end of limits": _end_of_limits,
    "no parking": _no_parking,
}
_DRAWINGS = tuple(_SIGNS.values())


def _draw_sign(label: int, style: Style, rng: Rng) -> np.ndarray:
    plate = _Plate(style, rng)
    _DRAWINGS[label](plate)
    return plate.canvas.pixels()


SIGNS = Subject(class_names=tuple(_SIGNS), draw=_draw_sign)
