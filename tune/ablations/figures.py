"""Figures of the ablations: rows of intervals, curves, and strips of points, in panels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log10

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from apgd.statistics import Interval
from tune.report.canvas import (
    SMALL,
    TEXT,
    fit_labels,
    mark,
    new_figure,
    style_axes,
    to_png,
    to_svg,
    to_svg_file,
)
from tune.report.document import Drawing, Plot
from tune.report.formatting import number
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette

_WIDE, _NARROW = 1100, 350
_TOP, _FOOT, _ROW, _CURVE, _KEY_LINE = 34, 48, 25, 260, 18
_AXIS, _RIGHT, _SAMPLE = 46.0, 18.0, 46.0
LOOKS = (("accent", "o"), ("second", "s"), ("third", "^"), ("quiet", "D"), ("ink", "v"))
"""Colour and mark of each series; no two share either."""
_DASHED = (0, (4, 3))


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """A figure for the page, and as files."""

    plot: Plot
    svg: str
    """The wide drawing, on white, to stand alone."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of a panel's key: a name, and a line that is drawn as its series is."""

    title: str
    colour: str
    """Its role in the palette."""
    dashed: bool = False
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    height: float
    """Of the axes alone, in points."""
    draw: Callable[[Axes, Palette], None]
    rows: tuple[str, ...] = ()
    """Labels of rows, the first on top; none where the panel has a vertical scale."""
    key: tuple["Sample", ...] = ()
    """What is what, written below the axes."""


def illustrate(name: str, caption: str, alt: str, panels: Sequence[Panel]) -> Illustration:
    """Panels side by side on a wide page, one below the other on a narrow one."""

    def drawn(palette: Palette, width: int) -> Figure:
        per_line = len(panels) if width == _WIDE else 1
        return _figure(panels, palette, width, per_line)

    slug = name.replace("_", "-")
    plot = Plot(
        name=f"ablation_{name}",
        caption=caption,
        alt=alt,
        drawings=(
            Drawing(
                wide=to_svg(drawn(PLACEHOLDERS, _WIDE), f"abl-{slug}-w"),
                narrow=to_svg(drawn(PLACEHOLDERS, _NARROW), f"abl-{slug}-n"),
            ),
        ),
        png=to_png(drawn(LIGHT, _WIDE), LIGHT),
    )
    return Illustration(plot=plot, svg=to_svg_file(drawn(LIGHT, _WIDE), LIGHT))


def _figure(panels: Sequence[Panel], palette: Palette, width: int, per_line: int) -> Figure:
    lines = [panels[start : start + per_line] for start in range(0, len(panels), per_line)]
    room = width / per_line - _AXIS - _RIGHT
    heights = [_TOP + max(_below_title(panel, room) for panel in line) + _FOOT for line in lines]
    height, top = sum(heights), 0.0
    figure = new_figure(width, height)
    for line, taken in zip(lines, heights, strict=True):
        column = width / len(line)
        for place, panel in enumerate(line):
            names, labels = fit_labels(panel.rows, 0.58 * column) if panel.rows else ([], _AXIS)
            left = place * column + labels
            axes = figure.add_axes(
                (
                    left / width,
                    (height - top - _TOP - panel.height) / height,
                    (column - labels - _RIGHT) / width,
                    panel.height / height,
                )
            )
            style_axes(axes, palette)
            panel.draw(axes, palette)
            axes.set_title(
                panel.title, loc="left", size=TEXT, color=palette.ink, weight="bold",
                parse_math=False,
            )  # fmt: skip
            if panel.rows:
                axes.set_yticks(range(len(names)))
                axes.set_yticklabels(names, parse_math=False, color=palette.ink, size=TEXT)
                axes.set_ylim(len(names) - 0.4, -0.6)
            _write_key(axes, panel, palette, room)
        top += taken
    return figure


def _below_title(panel: Panel, room: float) -> float:
    """Height of axes and key, in points."""
    lines = -(-len(panel.key) // _key_columns(panel, room)) if panel.key else 0
    return panel.height + _KEY_LINE * lines


def _key_columns(panel: Panel, room: float) -> int:
    """How many entries of the key stand beside each other in `room` points."""
    widths = [_SAMPLE + 0.57 * SMALL * len(sample.title) for sample in panel.key]
    for count in range(len(widths), 1, -1):
        columns = np.array_split(widths, count)  # as matplotlib fills them
        if sum(column.max() for column in columns) <= room + _RIGHT:
            return count
    return 1


def _write_key(axes: Axes, panel: Panel, palette: Palette, room: float) -> None:
    if not panel.key:
        return
    samples = [
        Line2D(
            [],
            [],
            color=getattr(palette, sample.colour),
            linestyle=_DASHED if sample.dashed else "-",
            linewidth=1.4,
            marker=sample.mark,
            markersize=5.5,
        )
        for sample in panel.key
    ]
    axes.legend(
        samples,
        [sample.title for sample in panel.key],
        loc="upper left",
        bbox_to_anchor=(-8 / room, -(_FOOT - 4) / panel.height),
        ncols=_key_columns(panel, room),
        frameon=False,
        borderaxespad=0,
        fontsize=SMALL,
        labelcolor=palette.ink,
    )


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """One interval with its name."""

    title: str
    value: Interval
    strong: bool = True
    """Whether it is drawn in the colour that says "this one"; hollow and quiet otherwise."""


def forest(title: str, rows: Sequence[ForestRow], unit: str, *, zero: bool = False) -> Panel:
    """Intervals below each other.

    Args:
        title: of the panel.
        rows: from top to bottom.
        unit: of the horizontal axis, on which shares are shown times 100.
        zero: whether a line marks zero.
    """

    def draw(axes: Axes, palette: Palette) -> None:
        if zero:
            axes.axvline(0, color=palette.ink, linewidth=1)
        for line, row in enumerate(rows):
            colour = palette.accent if row.strong else palette.quiet
            ends = [100 * row.value.low, 100 * row.value.high]
            axes.plot(ends, [line, line], color=colour, linewidth=2)
            face = colour if row.strong else palette.surface
            mark(axes, 100 * row.value.estimate, line, colour, face)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(unit, size=SMALL)

    names = tuple(row.title for row in rows)
    return Panel(title=title, height=_ROW * len(rows) + 8, draw=draw, rows=names)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Several points of one kind, below one another's names."""

    title: str
    points: tuple[float, ...]
    """As shares."""


def strips(title: str, rows: Sequence[Strip], unit: str) -> Panel:
    """A row of points for every strip, and the line that they span."""

    def draw(axes: Axes, palette: Palette) -> None:
        for line, row in enumerate(rows):
            shown = [100 * point for point in row.points]
            axes.plot([min(shown), max(shown)], [line, line], color=palette.grid, linewidth=2)
            axes.plot(
                shown, [line] * len(shown), "o",
                color=palette.accent, markersize=6.5, alpha=0.6, markeredgewidth=0,
            )  # fmt: skip
        axes.locator_params(axis="x", nbins=6)
        axes.margins(x=0.08)
        axes.set_xlabel(unit, size=SMALL)

    names = tuple(row.title for row in rows)
    return Panel(title=title, height=_ROW * len(rows) + 8, draw=draw, rows=names)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Intervals over a scale."""

    title: str
    values: tuple[Interval, ...]
    look: tuple[str, str] = LOOKS[0]
    """Colour role and mark."""


def curves(
    title: str,
    scale: Sequence[float],
    shown: Sequence[Curve],
    *,
    label: str,
    log: bool,
    faint: Sequence[Sequence[float]] = (),
    faint_title: str = "",
    marked: float | None = None,
) -> Panel:
    """Curves with an error bar at every value, and a key where there is more than one line.

    Args:
        title: of the panel, which says what is on the vertical axis, and its unit.
        scale: the values, ascending; on a logarithmic scale 0 stands one step before the others.
        shown: the curves, with one interval per value.
        label: of the horizontal axis.
        log: whether the scale is logarithmic.
        faint: thin lines behind them, as shares.
        faint_title: what these are.
        marked: the published value, which a dashed line marks.
    """
    places = _places(scale, log)
    closest = min((b - a for a, b in pairwise(places)), default=1.0)
    step = min(closest, (places[-1] - places[0]) / 6 or 1.0)

    def draw(axes: Axes, palette: Palette) -> None:
        axes.grid(axis="y", color=palette.grid, linewidth=0.8)
        axes.grid(axis="x", visible=False)
        if marked is not None:
            at = places[list(scale).index(marked)]
            axes.axvline(at, color=palette.muted, linewidth=1.2, linestyle=_DASHED, zorder=1)
        for line in faint:
            axes.plot(places, 100 * np.asarray(line), color=palette.quiet, linewidth=1, alpha=0.45)
        for index, curve in enumerate(shown):
            colour, form = getattr(palette, curve.look[0]), curve.look[1]
            # Beside each other, so that no bar hides another.
            moved = (index - (len(shown) - 1) / 2) * 0.07 * step
            xs = [place + moved for place in places]
            middle = [100 * value.estimate for value in curve.values]
            for x, value in zip(xs, curve.values, strict=True):
                axes.plot([x, x], [100 * value.low, 100 * value.high], color=colour, linewidth=1.8)
            axes.plot(xs, middle, form, color=colour, linestyle="-", linewidth=1.4, markersize=5.5)
        _thin_ticks(axes, places, [number(value) for value in scale])
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(label, size=SMALL, parse_math=False)

    key = [Sample(title=c.title, colour=c.look[0], mark=c.look[1]) for c in shown]
    if faint:
        key.append(Sample(title=faint_title, colour="quiet"))
    if marked is not None:
        key.append(Sample(title=f"published, {number(marked)}", colour="muted", dashed=True))
    return Panel(title=title, height=_CURVE, draw=draw, key=tuple(key) if len(key) > 1 else ())


def _places(scale: Sequence[float], log: bool) -> list[float]:
    if not log:
        return [float(value) for value in scale]
    logarithms = [log10(value) for value in scale if value > 0]
    gaps = [b - a for a, b in pairwise(logarithms)]
    before = logarithms[0] - (float(np.median(gaps)) if gaps else 1.0) if logarithms else 0.0
    return [log10(value) if value > 0 else before for value in scale]


def _thin_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """A name at every value, but for those that would run into the one before."""
    span = max(places) - min(places) or 1.0
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= 0.1 * span:
            kept.append(index)
    axes.set_xticks([places[index] for index in kept])
    axes.set_xticklabels([names[index] for index in kept], parse_math=False)
