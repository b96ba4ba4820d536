"""Ranks of many methods, and which cannot be told apart: a critical-difference diagram.

A row per method instead of labels around an axis: it stays readable for twenty-five methods and on
a phone.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apgd.evidence import Need
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
from tune.report.headline import has_apgd
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette
from tune.report.ranking import Ranking, letter
from tune.report.run import Run

_WIDE, _NARROW = 1100, 350
_ROW, _TOP, _FOOT, _PITCH = 25, 52, 46, 16


def ranking_figure(run: Run, ranking: Ranking) -> Plot:
    """Average ranks, the spread over tasks, and bars that join what does not differ."""

    def draw(palette: Palette, width: int) -> Figure:
        return _diagram(run, ranking, palette, width)

    return Plot(
        name="ranking",
        caption=(
            "Average rank of every method, 1 the best. Blue: with APGD's modification vector; "
            "hollow: needs training data or test inputs. Small ticks: the tasks, each averaged "
            "over seeds. Methods can be told apart whose average ranks are further apart than the "
            "critical distance, the line on top; on a wide page bars join those that cannot, under "
            "the letters that the table has."
        ),
        alt="Average ranks of the methods and their groups; the table below has the values.",
        drawings=(
            Drawing(
                wide=to_svg(draw(PLACEHOLDERS, _WIDE), "rank-w"),
                narrow=to_svg(draw(PLACEHOLDERS, _NARROW), "rank-n"),
            ),
        ),
        png=to_png(draw(LIGHT, _WIDE), LIGHT),
    )


def _diagram(run: Run, ranking: Ranking, palette: Palette, width: int) -> Figure:
    count = len(ranking.rows)
    body = _ROW * count
    height = _TOP + body + _FOOT
    figure = new_figure(width, height)
    titles = [run.method_title(row.method) for row in ranking.rows]
    wide = width > _NARROW
    names, labels = fit_labels(titles, (0.3 if wide else 0.58) * width)
    strip = _PITCH * len(ranking.groups) + 10 if wide else 0
    plot = width - labels - strip - 14
    axes = figure.add_axes((labels / width, _FOOT / height, plot / width, body / height))
    style_axes(axes, palette)
    per_task = ranking.ranks.mean(axis=0)  # (tasks, methods)
    for line, (row, rank) in enumerate(zip(ranking.rows, ranking.average_ranks, strict=True)):
        colour = palette.accent if has_apgd(row.method) else palette.quiet
        free = run.need(row.method) is Need.NOTHING
        ticks = per_task[:, line]
        axes.plot([ticks.min(), ticks.max()], [line, line], color=palette.grid, linewidth=1.6)
        axes.plot(ticks, [line] * len(ticks), "|", color=palette.muted, markersize=7, alpha=0.7)
        mark(axes, rank, line, colour, colour if free else palette.surface)
    axes.set_yticks(range(count))
    axes.set_yticklabels(names, parse_math=False, color=palette.ink, size=TEXT)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0.5, count + 0.5)
    axes.locator_params(axis="x", nbins=12 if wide else 5, integer=True)
    axes.set_xlabel("average rank", size=SMALL)
    _distance(figure, ranking, palette, (labels / width, plot / width), height, count)
    if wide:
        right = figure.add_axes(
            ((labels + plot + 8) / width, _FOOT / height, strip / width, body / height)
        )
        _groups(right, ranking, palette, count, strip)
    return figure


def _distance(
    figure: Figure,
    ranking: Ranking,
    palette: Palette,
    place: tuple[float, float],
    height: float,
    count: int,
) -> None:
    """The critical distance as a line above the rows, at the scale of the ranks."""
    left, width = place
    top = figure.add_axes((left, 1 - (_TOP - 8) / height, width, (_TOP - 8) / height))
    top.set_axis_off()
    top.set_xlim(0.5, count + 0.5)
    top.set_ylim(0, 1)
    reach = ranking.distance
    text = f"critical distance {reach:.1f}"
    if reach <= count - 1:
        top.plot([1, 1 + reach], [0.25, 0.25], color=palette.ink, linewidth=2)
        for end in (1, 1 + reach):
            top.plot([end, end], [0.12, 0.38], color=palette.ink, linewidth=1.5)
    else:
        text += ": wider than the axis"
    top.text(1, 0.55, text, color=palette.ink, size=SMALL, parse_math=False)


def _groups(axes: Axes, ranking: Ranking, palette: Palette, count: int, strip: float) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, strip)
    axes.set_ylim(count - 0.5, -0.5)
    for number, members in enumerate(ranking.groups):
        x = _PITCH * (number + 0.5)
        lines = [ranking.rows.index(row) for row in members]
        axes.plot(
            [x, x], [min(lines) - 0.25, max(lines) + 0.25],
            color=palette.ink, linewidth=3, solid_capstyle="butt",
        )  # fmt: skip
        axes.text(
            x, -0.75, letter(number),
            color=palette.muted, size=SMALL, ha="center", va="bottom", parse_math=False,
        )  # fmt: skip
