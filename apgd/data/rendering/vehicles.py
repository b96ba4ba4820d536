"""Road vehicles, seen from the side."""

from dataclasses import dataclass

import numpy as np

from apgd.data.rendering.canvas import (
    Canvas,
    Point,
    Pose,
    Rng,
    around,
    between,
    from_hsv,
    shade,
)
from apgd.data.rendering.style import Style
from apgd.data.rendering.subject import Subject

Box = tuple[float, float, float, float]
Outline = tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class _Build:
    """A vehicle that faces right, its wheels on the line y = 0.5."""

    body: tuple[Outline, ...]
    """In the body's colour."""
    load: tuple[Outline, ...] = ()
    """In a second colour."""
    glass: tuple[Outline, ...]
    wheels: tuple[tuple[float, float], ...]
    """Middle and radius of each."""


def _box(left: float, top: float, right: float, bottom: float) -> Outline:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _row(left: float, right: float, number: int, top: float, bottom: float) -> tuple[Outline, ...]:
    step = (right - left) / number
    return tuple(
        _box(left + k * step, top, left + (k + 0.72) * step, bottom) for k in range(number)
    )


_LOW = _box(-0.85, 0.05, 0.85, 0.42)
_CAR_WHEELS = ((-0.5, 0.17), (0.5, 0.17))

_BUILDS: dict[str, _Build] = {
    "sedan": _Build(
        body=(_LOW, ((-0.52, 0.06), (-0.36, -0.34), (0.22, -0.34), (0.45, 0.06))),
        glass=(
            ((-0.42, 0.02), (-0.31, -0.27), (-0.08, -0.27), (-0.08, 0.02)),
            ((0.0, 0.02), (0.0, -0.27), (0.19, -0.27), (0.35, 0.02)),
        ),
        wheels=_CAR_WHEELS,
    ),
    "hatchback": _Build(
        body=(
            _box(-0.62, 0.02, 0.66, 0.42),
            ((-0.62, 0.03), (-0.56, -0.34), (0.12, -0.34), (0.36, 0.03)),
        ),
        glass=(
            ((-0.5, 0.0), (-0.47, -0.27), (-0.2, -0.27), (-0.2, 0.0)),
            ((-0.13, 0.0), (-0.13, -0.27), (0.1, -0.27), (0.27, 0.0)),
        ),
        wheels=((-0.38, 0.17), (0.42, 0.17)),
    ),
    "coupe": _Build(
        body=(
            ((-0.9, 0.14), (-0.9, 0.42), (0.95, 0.42), (0.95, 0.3), (0.35, 0.1), (-0.6, 0.08)),
            ((-0.85, 0.14), (-0.3, -0.16), (0.05, -0.16), (0.5, 0.16)),
        ),
        load=(((-0.95, -0.06), (-0.68, -0.06), (-0.68, 0.02), (-0.95, 0.02)),),
        glass=(((-0.35, 0.06), (-0.2, -0.1), (0.03, -0.1), (0.26, 0.06)),),
        wheels=((-0.55, 0.2), (0.55, 0.2)),
    ),
    "convertible": _Build(
        body=(
            _box(-0.85, 0.1, 0.88, 0.42),
            ((0.2, 0.12), (0.06, -0.22), (0.14, -0.22), (0.34, 0.12)),
        ),
        load=(
            _box(-0.55, -0.08, -0.42, 0.12),
            _box(-0.12, -0.08, 0.0, 0.12),
            _box(-0.38, -0.28, -0.2, -0.08),
            _box(-0.4, -0.1, -0.14, 0.12),
        ),
        glass=(),
        wheels=_CAR_WHEELS,
    ),
    "jeep": _Build(
        body=(_box(-0.68, -0.08, 0.72, 0.36), _box(-0.68, -0.5, 0.2, -0.06)),
        glass=_row(-0.6, 0.2, 2, -0.42, -0.12),
        load=(_box(-0.82, -0.22, -0.68, 0.1),),
        wheels=((-0.42, 0.23), (0.45, 0.23)),
    ),
    "van": _Build(
        body=(
            (
                (-0.82, 0.42),
                (-0.82, -0.48),
                (0.4, -0.48),
                (0.72, -0.02),
                (0.85, 0.08),
                (0.85, 0.42),
            ),
        ),
        glass=(((0.2, -0.05), (0.2, -0.4), (0.37, -0.4), (0.6, -0.05)),),
        wheels=_CAR_WHEELS,
    ),
    "bus": _Build(
        body=(_box(-0.95, -0.52, 0.95, 0.4),),
        glass=_row(-0.88, 0.95, 6, -0.4, -0.08),
        wheels=((-0.6, 0.16), (0.6, 0.16)),
    ),
    "truck": _Build(
        body=(_box(0.42, -0.25, 0.9, 0.4),),
        load=(_box(-0.95, -0.6, 0.36, 0.28),),
        glass=(((0.6, 0.0), (0.6, -0.18), (0.78, -0.18), (0.86, 0.0)),),
        wheels=((-0.7, 0.16), (-0.35, 0.16), (0.65, 0.16)),
    ),
    "pickup": _Build(
        body=(
            _box(-0.92, 0.12, 0.88, 0.4),
            ((-0.05, 0.14), (-0.05, -0.42), (0.3, -0.42), (0.5, 0.02), (0.88, 0.06), (0.88, 0.2)),
        ),
        load=(_box(-0.92, 0.04, -0.84, 0.14),),
        glass=(((0.04, 0.0), (0.04, -0.34), (0.26, -0.34), (0.4, 0.0)),),
        wheels=((-0.58, 0.2), (0.55, 0.2)),
    ),
    "limousine": _Build(
        body=(
            _box(-1.0, 0.06, 1.0, 0.4),
            ((-0.78, 0.08), (-0.66, -0.18), (0.48, -0.18), (0.64, 0.08)),
        ),
        glass=_row(-0.62, 0.56, 5, -0.13, 0.05),
        wheels=((-0.7, 0.15), (0.7, 0.15)),
    ),
    "motorcycle": _Build(
        body=(((-0.4, 0.1), (-0.1, -0.16), (0.3, -0.16), (0.2, 0.22), (-0.2, 0.3)),),
        load=(
            _box(-0.5, -0.16, -0.1, -0.06),
            ((0.28, -0.4), (0.36, -0.4), (0.62, 0.25), (0.52, 0.25)),
        ),
        glass=(),
        wheels=((-0.52, 0.29), (0.56, 0.29)),
    ),
    "tractor": _Build(
        body=(_box(-0.1, -0.08, 0.72, 0.28), _box(0.5, -0.4, 0.56, -0.08)),
        load=(_box(-0.6, -0.55, 0.0, -0.48), _box(-0.08, -0.5, -0.03, 0.0)),
        glass=(_box(-0.5, -0.46, -0.1, -0.08),),
        wheels=((-0.38, 0.42), (0.55, 0.2)),
    ),
}
_MODELS = tuple(_BUILDS.values())


def _draw_vehicle(label: int, style: Style, rng: Rng) -> np.ndarray:
    build = _MODELS[label]
    canvas = Canvas()
    level = 0.45 + around(rng, style.shift)
    road = round(between(rng, (50, 110)))
    canvas.box(-1.5, level, 1.5, 1.5, (road, road, road + 4))
    pose = Pose.drawn(rng, style, mirror=True)
    canvas.place(
        Pose(0.5 * pose.turn, 0.95 * pose.size, pose.x, level - 0.4, pose.shear, pose.mirrored)
    )
    paint = from_hsv(rng.random(), between(rng, (0.3, 0.9)), between(rng, (0.45, 0.95)))
    second = from_hsv(rng.random(), between(rng, (0.0, 0.6)), between(rng, (0.4, 0.9)))
    longer, taller = 1.0 + around(rng, 0.5 * style.stray), 1.0 + around(rng, 0.7 * style.stray)

    def fit(outline: Outline) -> list[Point]:
        return [(longer * x, 0.5 + taller * (y - 0.5)) for x, y in outline]

    for outline in build.load:
        canvas.polygon(fit(outline), second)
    for outline in build.body:
        canvas.polygon(fit(outline), paint)
    glass = shade((150, 190, 210), between(rng, (0.35, 1.1)))
    for outline in build.glass:
        canvas.polygon(fit(outline), glass)
    for x, radius in build.wheels:
        canvas.disc(longer * x, 0.58 - radius, radius, (22, 22, 24))
        canvas.disc(longer * x, 0.58 - radius, 0.45 * radius, (150, 150, 155))
    return canvas.pixels()


VEHICLES = Subject(class_names=tuple(_BUILDS), draw=_draw_vehicle)
