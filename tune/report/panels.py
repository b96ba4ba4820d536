"""Small figures side by side: on the page they wrap, in a file they stand in rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune.report.canvas import TEXT, new_figure, to_png, to_svg
from tune.report.document import Drawing
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette

WIDTH = 320.0
"""Width of a panel, in points."""
HEIGHT = 250.0
_TITLE = 26.0
_PER_ROW = 4

Draw: TypeAlias = Callable[[Axes, Palette], None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small figure."""

    slug: str
    """Identifier, unique on the page."""
    draw: Draw
    title: str = ""
    """Said above the axes."""
    left: float = 48.0
    """Room for the labels of the vertical axis, in points."""
    height: float = HEIGHT


def render(panels: Sequence[Panel]) -> tuple[tuple[Drawing, ...], bytes]:
    """The panels as drawings for the page, and all of them as one PNG."""
    drawings = []
    for panel in panels:
        figure = new_figure(WIDTH, panel.height)
        _add(figure, panel, PLACEHOLDERS, (0.0, 0.0))
        drawings.append(Drawing(wide=to_svg(figure, panel.slug)))
    rows = [panels[start : start + _PER_ROW] for start in range(0, len(panels), _PER_ROW)]
    heights = [max(panel.height for panel in row) for row in rows]
    whole = new_figure(WIDTH * len(rows[0]), sum(heights))
    top = sum(heights)
    for row, height in zip(rows, heights, strict=True):
        for place, panel in enumerate(row):
            _add(whole, panel, LIGHT, (WIDTH * place, top - panel.height))
        top -= height
    return tuple(drawings), to_png(whole, LIGHT)


def _add(figure: Figure, panel: Panel, palette: Palette, corner: tuple[float, float]) -> None:
    """Draw a panel whose lower left corner is at `corner`, in points."""
    width, height = figure.get_size_inches() * 72
    head = _TITLE if panel.title else 8.0
    foot = 45.0
    axes = figure.add_axes(
        (
            (corner[0] + panel.left) / width,
            (corner[1] + foot) / height,
            (WIDTH - panel.left - 10) / width,
            (panel.height - head - foot) / height,
        )
    )
    panel.draw(axes, palette)
    if panel.title:
        figure.text(
            (corner[0] + 8) / width,
            (corner[1] + panel.height - 8) / height,
            panel.title,
            color=palette.ink, size=TEXT, weight="bold", va="top", parse_math=False,
        )  # fmt: skip
