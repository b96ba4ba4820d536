"""Figures of results: accuracy by task, and paired differences."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apgd.statistics import Interval
from tune.records import Variant
from tune.report.canvas import (
    SMALL,
    TEXT,
    fit_labels,
    mark,
    new_figure,
    style_axes,
    to_png,
    to_svg,
)
from tune.report.document import Drawing, Plot
from tune.report.headline import SUBJECT
from tune.report.measures import Measured, Row
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette
from tune.report.run import ENSEMBLE, EXPERTS, MULTI_TASK, PRETRAINED, RowKey, Run

_WIDE, _NARROW = 1100, 350
_MANY = 12
"""More methods than this are drawn closer together, and on a phone for the mean alone."""
_LINES: Mapping[RowKey, tuple[str, str, tuple[float | None, ...]]] = {
    PRETRAINED: ("dotted", "zero-shot", (1, 2)),
    EXPERTS: ("solid", "single experts", (None, None)),
    MULTI_TASK: ("dashed", "multi-task training", (5, 2)),
    ENSEMBLE: ("dashed and dotted", "ensemble of experts", (5, 2, 1, 2)),
}
"""How the line of a reference is called and what it is, and its dashes."""
Panels = Mapping[str, Mapping[RowKey, Interval | None]]
"""By title of the panel, the rows of one column."""


def accuracy_figure(run: Run, main: Measured) -> Plot | None:
    """A panel per task and one for the mean; a line per method, with its interval."""
    methods = list(dict.fromkeys(row.key.method for row in main.rows if row.key.is_merge))
    if not methods:
        return None
    panels = {
        title: {row.key: row.values[index] for row in main.rows}
        for index, title in enumerate(main.columns)
        if title != "Of experts"
    }

    many = len(methods) > _MANY
    few = dict(list(panels.items())[:1]) if many else panels
    there = {row.key for row in main.rows}
    told = [f"{look}: {what}" for key, (look, what, _) in _LINES.items() if key in there]
    lines = f" Lines: {'; '.join(told)}." if told else ""

    def draw(palette: Palette, width: int, per_line: int) -> Figure:
        shown = panels if width == _WIDE else few
        return _accuracy(run, methods, shown, palette, width, per_line)

    return Plot(
        name="accuracy",
        caption=(
            f"Test {run.manifest.measure} in percent with 95 % intervals. Filled marks: tuned on "
            f"validation data; hollow marks: published settings.{lines}"
            + (" A narrow page shows the mean alone; the table has the tasks." if many else "")
        ),
        alt=f"Test {run.manifest.measure} of every method, on average and by task; the main table "
        "has the values.",
        drawings=(
            Drawing(
                wide=to_svg(draw(PLACEHOLDERS, _WIDE, 3), "acc-w"),
                narrow=to_svg(draw(PLACEHOLDERS, _NARROW, 1), "acc-n"),
            ),
        ),
        png=to_png(draw(LIGHT, _WIDE, 3), LIGHT),
    )


def _accuracy(
    run: Run, methods: Sequence[str], panels: Panels, palette: Palette, width: int, per_line: int
) -> Figure:
    lines = math.ceil(len(panels) / per_line)
    body, head, foot = (20 if len(methods) > _MANY else 24) * len(methods) + 10, 34, 34
    height = lines * (head + body + foot)
    figure = new_figure(width, height)
    names, labels = fit_labels(
        [run.method_title(method) for method in methods], _room(width) * width
    )
    column = (width - labels - 12) / per_line
    for index, (title, values) in enumerate(panels.items()):
        line, place = divmod(index, per_line)
        left = labels + place * column
        bottom = height - line * (head + body + foot) - head - body
        axes = figure.add_axes(
            (left / width, bottom / height, (column - 22) / width, body / height)
        )
        style_axes(axes, palette)
        (shown,), _ = fit_labels([title], column)
        _panel(axes, shown, methods, values, palette)
        axes.set_yticks(range(len(methods)))
        axes.set_yticklabels(
            names if place == 0 else [""] * len(names),
            parse_math=False,
            color=palette.ink,
            size=TEXT,
        )
    return figure


def _room(width: int) -> float:
    """Share of the width that names may take: all of a long one on a phone."""
    return 0.58 if width <= _NARROW else 0.45


def _panel(
    axes: Axes,
    title: str,
    methods: Sequence[str],
    values: Mapping[RowKey, Interval | None],
    palette: Palette,
) -> None:
    axes.set_title(title, parse_math=False, loc="left", size=TEXT, color=palette.ink, weight="bold")
    for reference, (_, _, dashes) in _LINES.items():
        value = values.get(reference)
        if value is not None:
            axes.axvline(
                100 * value.estimate, color=palette.muted, linewidth=1.3, dashes=dashes, zorder=1
            )
    for line, method in enumerate(methods):
        colour = palette.accent if method == SUBJECT else palette.quiet
        for variant, shift in ((Variant.PUBLISHED, -0.16), (Variant.TUNED, 0.16)):
            value = values.get(RowKey(method, variant))
            if value is None:
                continue
            axes.plot(
                [100 * value.low, 100 * value.high], [line + shift] * 2, color=colour, linewidth=1.6
            )
            face = colour if variant is Variant.TUNED else palette.surface
            mark(axes, 100 * value.estimate, line + shift, colour, face)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)


def difference_figure(name: str, table: Measured, subject: str) -> Plot | None:
    """The first column of a table of differences: a line per row, and zero."""
    rows = [row for row in table.rows if row.values[0] is not None]
    if not rows:
        return None
    many = len(rows) > 2 * _MANY
    if many:
        tuned = {row.key.method for row in rows if row.key.variant is Variant.TUNED}
        rows = [
            row
            for row in rows
            if row.key.variant is not Variant.PUBLISHED or row.key.method not in tuned
        ]

    return Plot(
        name=name,
        caption=(
            f"{subject} minus each other row, mean over the tasks, in percentage points with 95 % "
            "intervals. Right of zero: better than the other row. Hollow marks: the interval "
            "holds zero."
            + (" Of methods with a tuned row only that; the table has all." if many else "")
        ),
        alt=f"Differences between {subject} and every other row; the table below has the values.",
        drawings=(
            Drawing(
                wide=to_svg(_forest(rows, PLACEHOLDERS, _WIDE), f"{name}-w"),
                narrow=to_svg(_forest(rows, PLACEHOLDERS, _NARROW), f"{name}-n"),
            ),
        ),
        png=to_png(_forest(rows, LIGHT, _WIDE), LIGHT),
    )


def _titles(rows: Sequence[Row]) -> list[str]:
    """Names of rows; without their variant, where it is that of all."""
    variants = {row.key.variant for row in rows}
    if len(variants) > 1:
        return [row.title for row in rows]
    return [row.title.removesuffix(f" ({row.key.variant})") for row in rows]


def _forest(rows: Sequence[Row], palette: Palette, width: int) -> Figure:
    body, foot = 26 * len(rows) + 8, 46
    height = body + foot + 6
    names, labels = fit_labels(_titles(rows), 0.58 * width)
    figure = new_figure(width, height)
    axes = figure.add_axes(
        (labels / width, foot / height, (width - labels - 16) / width, body / height)
    )
    style_axes(axes, palette)
    axes.axvline(0, color=palette.ink, linewidth=1)
    for line, row in enumerate(rows):
        gap = row.values[0]
        if gap is None:
            continue
        colour = palette.quiet if gap.includes_zero else palette.accent
        face = palette.surface if gap.includes_zero else colour
        axes.plot([100 * gap.low, 100 * gap.high], [line, line], color=colour, linewidth=2)
        mark(axes, 100 * gap.estimate, line, colour, face)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(names, parse_math=False, color=palette.ink, size=TEXT)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=7 if width > _NARROW else 4)
    axes.set_xlabel("percentage points", size=SMALL)
    return figure
