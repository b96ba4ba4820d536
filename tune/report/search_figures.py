"""Figures of the search: validation score against each searched parameter."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from apgd.methods import Value
from tune.records import Record, Variant
from tune.report.axis import Axis
from tune.report.canvas import POINTS_PER_INCH, SMALL, TEXT, style_axes
from tune.report.document import Plot
from tune.report.formatting import counted, listed, number
from tune.report.palette import Palette
from tune.report.panels import Panel, render
from tune.report.run import RowKey, Run
from tune.report.seeds import mark_legend, seed_colour, seed_mark, seeds_of
from tune.report.trials import (
    Outcome,
    Place,
    best_trials,
    last_settings,
    objective,
    of_outcome,
    swept,
)

_STEP = 7.0
"""From one seed to the next on a grid of values, in points."""


def search_figure(run: Run, method: str) -> Plot | None:
    """A panel per searched parameter that the trials have; None without trials or parameters."""
    trials = [trial for trial in run.trials if trial.method == method and trial.scores]
    axes = [axis for axis in slice_axes(run, method) if _is_shown(trials, axis)]
    if not axes:
        return None
    published = _published(run, method)
    title = run.method_title(method)
    drawings, png = render(
        [
            Panel(
                slug=f"search-{slug(method)}-{index}",
                draw=partial(_slice, axis=axis, trials=trials, published=published.get(axis.name)),
            )
            for index, axis in enumerate(axes)
        ]
    )
    meanings = "; ".join(f"{axis.name}: {axis.meaning}" for axis in axes if axis.meaning)
    return Plot(
        name=f"search_{slug(method)}",
        caption=(
            f"{title}. Validation data: {run.manifest.chosen_by} (%) of each trial; "
            f"{mark_legend(trials)}. {_inside(trials, axes)}{_stopped(trials)}"
            f"Ring: best trial of its seed; dashed line: published setting. {meanings}."
        ),
        alt=(
            f"{title}: {run.manifest.chosen_by} of {len(trials)} trials on validation data against "
            f"{', '.join(axis.name for axis in axes)}."
        ),
        drawings=drawings,
        png=png,
    )


def slice_axes(run: Run, method: str) -> tuple[Axis, ...]:
    """The parameters that a search varied, between its trials or inside them."""
    declared = tuple(run.axes.get(method, ()))
    names = {axis.name for axis in declared}
    inside = swept([trial for trial in run.trials if trial.method == method])
    return declared + tuple(Axis(name=name, meaning="") for name in inside if name not in names)


def _is_shown(trials: Sequence[Record], axis: Axis) -> bool:
    """Whether a panel along this parameter would say anything."""
    if axis.name not in swept(trials):
        return bool(_values(trials, axis))
    # What only grows from rung to rung, as iterations may, is the same for all full trials; with it
    # a panel would show which trials were stopped, and look like an effect.
    return len({x for x, _ in _values(of_outcome(trials, Outcome.FULL), axis)}) > 1


def _inside(trials: Sequence[Record], axes: Sequence[Axis]) -> str:
    names = [axis.name for axis in axes if axis.name in swept(trials)]
    if not names:
        return ""
    return (
        f"Along {listed(names)}, which every trial varies inside itself, each setting is shown "
        "that was judged at the trial's last rung, seeds side by side; only the more promising "
        "settings of a rung go on to the next. "
    )


def _stopped(trials: Sequence[Record]) -> str:
    count = len(of_outcome(trials, Outcome.STOPPED))
    if not count:
        return ""
    return (
        f"Hollow and faint: {counted(count, 'trial')} stopped early, at the score that the last "
        "rung gave, on a part of the validation examples. "
    )


def _slice(
    axes: Axes, palette: Palette, *, axis: Axis, trials: Sequence[Record], published: Value
) -> None:
    style_axes(axes, palette)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.margins(0.06, 0.1)
    if axis.log:
        axes.set_xscale("log")
    best = best_trials(trials)
    if isinstance(published, int | float):
        axes.axvline(published, color=palette.muted, linewidth=1.2, dashes=(4, 3), zorder=1)
    seeds, on_grid = seeds_of(trials), axis.name in swept(trials)
    for seed in seeds:
        colour, mark = seed_colour(palette, seed), seed_mark(seed)
        own = [trial for trial in trials if trial.seed == seed]
        stopped = _values(of_outcome(own, Outcome.STOPPED), axis)
        full = _values(of_outcome(own, Outcome.FULL), axis)
        winner = best.get(Place(own[0].method, seed))
        lines = axes.plot(
            [x for x, _ in stopped], [y for _, y in stopped],
            mark, color=colour, markersize=4.5, alpha=0.45, markerfacecolor="none",
            markeredgewidth=1, linestyle="none", zorder=2,
        )  # fmt: skip
        lines += axes.plot(
            [x for x, _ in full], [y for _, y in full],
            mark, color=colour, markersize=5.5, alpha=0.75, markeredgewidth=0, linestyle="none",
        )  # fmt: skip
        for x, y in [] if winner is None else _own_value(winner, axis):
            lines += axes.plot(
                [x], [y], "o",
                markersize=12, markerfacecolor="none", color=colour, markeredgewidth=1.6,
            )  # fmt: skip
        if on_grid:
            # Moved when the axes have seen them: they find no limits for what is not in place.
            beside = _beside(axes, seeds.index(seed) - (len(seeds) - 1) / 2)
            for line in lines:
                line.set_transform(beside)
    if axis.log:
        _label_log_axis(axes)
    else:
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.locator_params(axis="y", nbins=5)
    dropped = sum(not _values([trial], axis) for trial in trials)
    note = f" ({dropped} without a value)" if dropped else ""
    axes.set_xlabel(axis.name + note, size=TEXT, color=palette.ink, parse_math=False, labelpad=6)


def _beside(axes: Axes, steps: float) -> Transform:
    """Moved sideways from the data: on a grid of few values seeds would hide each other."""
    shift = steps * _STEP / POINTS_PER_INCH
    return axes.transData + ScaledTranslation(shift, 0.0, axes.figure.dpi_scale_trans)


def _label_log_axis(axes: Axes) -> None:
    """Plain numbers; within a decade or two also at 2 and 5, where powers of ten are too few."""
    low, high = axes.get_xlim()
    # Small numbers are long words, of which fewer fit.
    steps = (1.0, 2.0, 5.0) if high / low < (200 if low > 1e-3 else 15) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", length=0, labelsize=SMALL)


def _values(trials: Sequence[Record], axis: Axis) -> list[tuple[float, float]]:
    """(parameter, validation score in percent); what has no number has no place here."""
    if axis.name not in swept(trials):
        return [pair for trial in trials for pair in _own_value(trial, axis)]
    return [
        pair
        for trial in trials
        for setting in last_settings(trial)
        for pair in _pair(setting.params.get(axis.name), setting.value, axis)
    ]


def _own_value(trial: Record, axis: Axis) -> list[tuple[float, float]]:
    return _pair(trial.params.get(axis.name), objective(trial), axis)


def _pair(value: Value, score: float, axis: Axis) -> list[tuple[float, float]]:
    if isinstance(value, int | float) and (value > 0 or not axis.log):
        return [(float(value), 100 * score)]
    return []


def _published(run: Run, method: str) -> dict[str, Value]:
    by_seed = run.evaluations.get(RowKey(method, Variant.PUBLISHED), {})
    return next((dict(record.params) for record in by_seed.values()), {})


def slug(method: str) -> str:
    """A method's name as part of a file name and of an identifier."""
    return "".join(letter if letter.isalnum() else "_" for letter in method)
