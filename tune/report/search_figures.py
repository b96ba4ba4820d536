"""Figures of the search: validation accuracy against each searched parameter."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from apgd.methods import Value
from tune.records import Record, Variant
from tune.report.axis import Axis
from tune.report.canvas import SMALL, TEXT, new_figure, style_axes, to_png, to_svg
from tune.report.document import Drawing, Plot
from tune.report.formatting import number
from tune.report.palette import LIGHT, PLACEHOLDERS, Palette
from tune.report.run import RowKey, Run, best_trials, objective

_WIDTH, _HEIGHT = 320, 250
_MARKS = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds", "v": "wedges"}


def search_figure(run: Run, method: str) -> Plot | None:
    """A panel per searched parameter that the trials have; None without trials or parameters."""
    trials = [trial for trial in run.trials if trial.method == method and trial.scores]
    axes = [axis for axis in run.axes.get(method, ()) if _values(trials, axis)]
    if not axes:
        return None
    published = _published(run, method)
    title = run.method_title(method)

    drawings = []
    for index, axis in enumerate(axes):
        panel = new_figure(_WIDTH, _HEIGHT)
        place = panel.add_axes((0.15, 0.18, 0.82, 0.79))
        _panel(place, axis, trials, published.get(axis.name), PLACEHOLDERS)
        drawings.append(Drawing(wide=to_svg(panel, f"search-{_slug(method)}-{index}")))

    whole = new_figure(_WIDTH * len(axes), _HEIGHT)
    for index, axis in enumerate(axes):
        left = (index + 0.15) / len(axes)
        place = whole.add_axes((left, 0.18, 0.82 / len(axes), 0.79))
        _panel(place, axis, trials, published.get(axis.name), LIGHT)

    meanings = "; ".join(f"{axis.name}: {axis.meaning}" for axis in axes)
    return Plot(
        name=f"search_{_slug(method)}",
        caption=(
            f"{title}. Mean validation {run.manifest.measure} (%) of each trial; "
            f"{_legend(trials)}. Ring: best trial of its seed; dashed line: published setting. "
            f"{meanings}."
        ),
        alt=(
            f"{title}: validation {run.manifest.measure} of {len(trials)} trials against "
            f"{', '.join(axis.name for axis in axes)}."
        ),
        drawings=tuple(drawings),
        png=to_png(whole, LIGHT),
    )


def _panel(
    axes: Axes,
    axis: Axis,
    trials: Sequence[Record],
    published: Value,
    palette: Palette,
) -> None:
    style_axes(axes, palette)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.margins(0.06, 0.1)
    if axis.log:
        axes.set_xscale("log")
    colours = (palette.accent, palette.second, palette.third, palette.quiet, palette.ink)
    best = best_trials(trials)
    seeds = _seeds(trials)
    if isinstance(published, int | float):
        axes.axvline(published, color=palette.muted, linewidth=1.2, dashes=(4, 3), zorder=1)
    for place, seed in enumerate(seeds):
        colour, mark = colours[place % len(colours)], list(_MARKS)[place % len(_MARKS)]
        own = [trial for trial in trials if trial.seed == seed]
        pairs = _values(own, axis)
        axes.plot(
            [x for x, _ in pairs], [y for _, y in pairs],
            mark, color=colour, markersize=5.5, alpha=0.75, markeredgewidth=0, linestyle="none",
        )  # fmt: skip
        for x, y in _values([best[own[0].method, seed]], axis):
            axes.plot(
                [x], [y], "o",
                markersize=12, markerfacecolor="none", color=colour, markeredgewidth=1.6,
            )  # fmt: skip
    if axis.log:
        _label_log_axis(axes)
    else:
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.locator_params(axis="y", nbins=5)
    dropped = len(trials) - len(_values(trials, axis))
    note = f" ({dropped} without a value)" if dropped else ""
    axes.set_xlabel(axis.name + note, size=TEXT, color=palette.ink, parse_math=False, labelpad=6)


def _seeds(trials: Sequence[Record]) -> list[int]:
    return sorted({trial.seed for trial in trials})


def _legend(trials: Sequence[Record]) -> str:
    """Which seed has which mark; with more seeds than marks, marks come round again."""
    names = list(_MARKS.values())
    seeds = enumerate(_seeds(trials))
    return ", ".join(f"{names[place % len(names)]}: seed {seed}" for place, seed in seeds)


def _label_log_axis(axes: Axes) -> None:
    """Plain numbers; within a decade or two also at 2 and 5, where powers of ten are too few."""
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", length=0, labelsize=SMALL)


def _values(trials: Sequence[Record], axis: Axis) -> list[tuple[float, float]]:
    """(parameter, validation accuracy in percent); a trial without a number has no place here."""
    pairs = []
    for trial in trials:
        value = trial.params.get(axis.name)
        if isinstance(value, int | float) and (value > 0 or not axis.log):
            pairs.append((float(value), 100 * objective(trial)))
    return pairs


def _published(run: Run, method: str) -> dict[str, Value]:
    by_seed = run.evaluations.get(RowKey(method, Variant.PUBLISHED), {})
    return next((dict(record.params) for record in by_seed.values()), {})


def _slug(method: str) -> str:
    """A method's name as part of a file name and of an identifier."""
    return "".join(letter if letter.isalnum() else "_" for letter in method)
