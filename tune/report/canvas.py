"""Matplotlib figures as PNG for files and as SVG for the page."""

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from tune.report.palette import Palette, with_page_colours

POINTS_PER_INCH = 72
"""A length of 1 point is drawn as 1 CSS pixel."""

TEXT = 12.5
"""Size of text, in points."""
SMALL = 11.0

_LABEL_MARGIN = 12.0


def new_figure(width: float, height: float) -> Figure:
    """An empty transparent figure; width and height in points."""
    return Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), facecolor="none")


def style_axes(axes: Axes, palette: Palette) -> None:
    """Light axes: no box, quiet ticks, vertical grid lines behind the data."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=palette.grid, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.muted)
    axes.tick_params(colors=palette.muted, labelsize=SMALL, length=0, pad=5)
    axes.xaxis.label.set_color(palette.muted)
    axes.yaxis.label.set_color(palette.muted)


def mark(axes: Axes, x: float, y: float, edge: str, face: str) -> None:
    """One estimate: a disc with an edge, hollow where its face is the surface."""
    axes.plot([x], [y], "o", color=edge, markerfacecolor=face, markersize=6.5, markeredgewidth=1.5)


def fit_labels(titles: Sequence[str], most: float) -> tuple[list[str], float]:
    """Row labels that keep within `most` points, and the width that they take.

    The width of a character is that of a wide sans-serif font, since the page's own is not known.
    """
    per_character = 0.6 * TEXT
    room = int((most - _LABEL_MARGIN) / per_character)
    shown = [_shortened(title, room) for title in titles]
    longest = max((len(title) for title in shown), default=0)
    return shown, longest * per_character + _LABEL_MARGIN


def _shortened(title: str, room: int) -> str:
    """At most `room` characters; what a title says last in brackets stays, where it is short."""
    if len(title) <= room:
        return title
    head, bracket, last = title.rpartition(" (")
    tail = f"…{bracket}{last}"
    if head and len(tail) <= 0.6 * room:
        return head[: room - len(tail)].rstrip() + tail
    return f"{title[: room - 1]}…"


def to_png(figure: Figure, palette: Palette) -> bytes:
    """The figure at twice its size in pixels, on the palette's surface."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=2 * POINTS_PER_INCH, facecolor=palette.surface)
    return buffer.getvalue()


def to_svg_file(figure: Figure, palette: Palette) -> str:
    """The figure as an SVG document of its own, on the palette's surface."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", facecolor=palette.surface, metadata={"Date": None})
    return buffer.getvalue()


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure, drawn with `PLACEHOLDERS`, as SVG to stand inside a page.

    Text stays text, in the page's font and colours; identifiers begin with `prefix`, which makes
    them unique on the page; and nothing in it refers to another document.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    # A fixed salt makes the same data give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", facecolor="none")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    width = box.group(1).split()[2] if box else "0"
    head = f'<svg viewBox="{box.group(1) if box else ""}" style="max-width: {width}px"'
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    return with_page_colours(f'{head} aria-hidden="true">{body}').strip()
