"""Colours of the figures: fixed ones for files, and the page's own for the page."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Palette:
    """One colour per role.

    The series colours keep their distance for every common kind of colour blindness, and no figure
    relies on colour alone.
    """

    ink: str
    """Text."""
    muted: str
    """Axes, ticks, remarks."""
    grid: str
    """Lines behind the data."""
    surface: str
    """What the figure lies on."""
    accent: str
    """The method that the report is about."""
    second: str
    third: str
    quiet: str
    """The other methods."""


LIGHT = Palette(
    ink="#1c1f24",
    muted="#5f6570",
    grid="#e4e1da",
    surface="#ffffff",
    accent="#0068a6",
    second="#c8500a",
    third="#00805f",
    quiet="#7a7466",
)
"""For files, which lie on white."""

PLACEHOLDERS = Palette(
    ink="#010a01",
    muted="#010a02",
    grid="#010a03",
    surface="#010a04",
    accent="#010a05",
    second="#010a06",
    third="#010a07",
    quiet="#010a08",
)
"""For SVG inside the page: colours that no theme uses, replaced by the page's variables."""


def with_page_colours(svg: str) -> str:
    """An SVG drawn with `PLACEHOLDERS`, its colours replaced by `var(--ink)` and the like.

    So one drawing follows the page's light and dark theme.
    """
    for role in fields(Palette):
        svg = svg.replace(getattr(PLACEHOLDERS, role.name), f"var(--{role.name})")
    return svg
