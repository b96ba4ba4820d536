"""Task vectors and merges, matrix by matrix."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apgd.analysis import delta_figures, expert_figures
from tune.report.canvas import SMALL, TEXT, fit_labels, new_figure, style_axes, to_png, to_svg
from tune.report.document import Drawing, Plot
from tune.report.formatting import listed
from tune.report.geometry import Geometry, short_names
from tune.report.headline import SUBJECT
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette
from tune.report.run import RowKey, Run

_WIDE, _NARROW = 1100, 350
_MARKS = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds", "v": "wedges"}
_ROW, _HEAD, _FOOT = 17, 34, 34

_Draw = Callable[[Axes, Palette], None]


def geometry_figure(run: Run, geometry: Geometry) -> Plot:
    """Three panels with a line per matrix."""
    shown = chosen_rows(geometry)
    marks = listed(
        [
            f"{mark}: {run.method_title(row.method)}"
            for mark, row in zip(_MARKS.values(), shown, strict=False)
        ]
    )
    panels: dict[str, _Draw] = {
        "Energy of the task vectors in U": lambda axes, p: _energy(axes, geometry, p),
        "Overlap of leading subspaces": lambda axes, p: _overlap(axes, geometry, p),
        "Length of the merge, ‖δ‖ / ‖τ̄‖": lambda axes, p: _sizes(axes, geometry, shown, p),
    }

    def draw(palette: Palette, width: int, per_line: int) -> Figure:
        return _panels(geometry, panels, palette, width, per_line)

    return Plot(
        name="geometry",
        caption=(
            "By matrix, input first. Left: share of each task vector's energy inside the shared "
            "subspace U; ticks are tasks, discs all together. Middle: share that the leading "
            "subspaces of two tasks have in common, mean over pairs. Dashes: what random "
            f"subspaces of the same size would give. Right: length of merges ({marks})."
        ),
        alt="Energy in the shared subspace, overlap of subspaces and length of merges by matrix.",
        drawings=(
            Drawing(
                wide=to_svg(draw(PLACEHOLDERS, _WIDE, 3), "geo-w"),
                narrow=to_svg(draw(PLACEHOLDERS, _NARROW, 1), "geo-n"),
            ),
        ),
        png=to_png(draw(LIGHT, _WIDE, 3), LIGHT),
    )


def chosen_rows(geometry: Geometry) -> tuple[RowKey, ...]:
    """At most five: the best, the subject, a baseline, and the worst."""
    rows = list(geometry.merges)
    known = {row.method: row for row in rows}
    wanted = [rows[0], *(known[name] for name in (SUBJECT, "task_arithmetic") if name in known)]
    return tuple(dict.fromkeys([*wanted, *rows[1:2], rows[-1]]))[: len(_MARKS)]


def _panels(
    geometry: Geometry, panels: dict[str, _Draw], palette: Palette, width: int, per_line: int
) -> Figure:
    count = len(geometry.experts)
    body = _ROW * count + 8
    lines = -(-len(panels) // per_line)
    height = lines * (_HEAD + body + _FOOT)
    figure = new_figure(width, height)
    names, labels = fit_labels(
        short_names([layer.name for layer in geometry.experts]), 0.45 * width
    )
    column = (width - labels - 12) / per_line
    for index, (title, draw) in enumerate(panels.items()):
        line, place = divmod(index, per_line)
        bottom = height - line * (_HEAD + body + _FOOT) - _HEAD - body
        left = labels + place * column
        axes = figure.add_axes(
            (left / width, bottom / height, (column - 40) / width, body / height)
        )
        style_axes(axes, palette)
        (shown,), _ = fit_labels([title], max(column, 270))
        axes.set_title(
            shown, parse_math=False, loc="left", size=TEXT, color=palette.ink, weight="bold"
        )
        draw(axes, palette)
        axes.set_yticks(range(count))
        axes.set_yticklabels(
            names if place == 0 else [""] * count, parse_math=False, color=palette.ink, size=SMALL
        )
        axes.set_ylim(count - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _energy(axes: Axes, geometry: Geometry, palette: Palette) -> None:
    for line, layer in enumerate(geometry.experts):
        each = [
            inside / layer.products[i][i] if layer.products[i][i] > 0 else 0.0
            for i, inside in enumerate(layer.shared)
        ]
        axes.plot(each, [line] * len(each), "|", color=palette.muted, markersize=7, alpha=0.7)
        axes.plot([expert_figures([layer]).shared], [line], "o", color=palette.accent, markersize=6)
        _chance(axes, layer.shared_size / layer.shape[0], line, palette)
    axes.set_xlim(0, 1)


def _overlap(axes: Axes, geometry: Geometry, palette: Palette) -> None:
    for line, layer in enumerate(geometry.experts):
        found = expert_figures([layer]).overlap
        axes.plot([found], [line], "o", color=palette.accent, markersize=6)
        _chance(axes, layer.shared_size / layer.shape[0], line, palette)
    axes.set_xlim(0, 1)


def _chance(axes: Axes, share: float, line: int, palette: Palette) -> None:
    axes.plot([share, share], [line - 0.4, line + 0.4], color=palette.second, linewidth=1.6)


def _sizes(axes: Axes, geometry: Geometry, rows: Sequence[RowKey], palette: Palette) -> None:
    colours = (palette.third, palette.second, palette.quiet, palette.ink, palette.muted)
    free = iter(colours)
    for mark, row in zip(_MARKS, rows, strict=False):
        colour = palette.accent if row.method == SUBJECT else next(free)
        sizes = [
            delta_figures([expert], [delta]).size
            for expert, delta in zip(geometry.experts, geometry.merges[row], strict=True)
        ]
        axes.plot(
            sizes, range(len(sizes)),
            mark, color=colour, markersize=5.5, markeredgewidth=0, alpha=0.85, linestyle="none",
        )  # fmt: skip
    axes.set_xlim(left=0)
