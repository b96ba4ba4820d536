"""How figures tell seeds apart: by mark or line, and by colour."""

from collections.abc import Iterable
from typing import TypeAlias

from tune.records import Record
from tune.report.palette import Palette

Dashes: TypeAlias = str | tuple[float, tuple[float, ...]]

# With more seeds than there are marks or lines, these come round again.
_MARKS = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds", "v": "wedges"}
_LINES: dict[str, Dashes] = {
    "solid": "solid",
    "dashed": (0, (5, 2)),
    "dotted": (0, (1.2, 1.5)),
    "dash-dotted": (0, (6, 2, 1.5, 2)),
    "long dashes": (0, (10, 3)),
}


def seeds_of(trials: Iterable[Record]) -> list[int]:
    """The seeds that these trials have, in order."""
    return sorted({trial.seed for trial in trials})


def seed_mark(seed: int) -> str:
    """A seed's mark, as matplotlib names it."""
    return list(_MARKS)[seed % len(_MARKS)]


def seed_line(seed: int) -> Dashes:
    """A seed's kind of line, as matplotlib names it."""
    return list(_LINES.values())[seed % len(_LINES)]


def seed_colour(palette: Palette, seed: int) -> str:
    """A seed's colour."""
    colours = (palette.accent, palette.second, palette.third, palette.quiet, palette.ink)
    return colours[seed % len(colours)]


def mark_legend(trials: Iterable[Record]) -> str:
    """Which seed has which mark."""
    return _legend(trials, list(_MARKS.values()))


def line_legend(trials: Iterable[Record]) -> str:
    """Which seed has which line."""
    return _legend(trials, list(_LINES))


def _legend(trials: Iterable[Record], names: list[str]) -> str:
    return ", ".join(f"{names[seed % len(names)]}: seed {seed}" for seed in seeds_of(trials))
