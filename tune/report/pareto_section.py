"""Searches with several objectives: what none of their settings beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes

from apgd.pareto import pareto_front
from tune.records import Record
from tune.report.canvas import TEXT, style_axes
from tune.report.document import Details, Plot, Table, TableRow, numbers, words
from tune.report.formatting import listed, number, plain
from tune.report.palette import Palette
from tune.report.panels import Panel, render
from tune.report.run import Run
from tune.report.search_figures import slice_axes, slug
from tune.report.seeds import mark_legend, seed_colour, seed_mark
from tune.report.trials import OBJECTIVES, Outcome, Setting, last_settings, objectives, of_outcome

_MANY = 24
"""Longer tables are shown when asked for."""


@dataclass(frozen=True, kw_only=True)
class _Front:
    """The settings of one seed that were judged in full."""

    seed: int
    settings: tuple[Setting, ...]
    points: np.ndarray
    """(n, d), the objectives in percent."""
    on_front: np.ndarray
    """(n,), booleans."""


def pareto_blocks(run: Run) -> tuple[Plot | Table | Details, ...]:
    """A figure and a table per method that was searched for several objectives."""
    blocks: list[Plot | Table | Details] = []
    methods = dict.fromkeys([*run.manifest.methods, *(trial.method for trial in run.trials)])
    for method in methods:
        own = [trial for trial in run.trials if trial.method == method]
        trials = of_outcome(own, Outcome.FULL)
        names = list(objectives(trials[0])) if trials else []
        if len(names) > 1:
            fronts = _fronts(trials, names)
            table = _table(run, method, names, fronts)
            short = len(table.rows) <= _MANY
            blocks.append(_figure(run, method, trials, names, fronts))
            blocks.append(table if short else Details(summary=table.caption, blocks=(table,)))
    return tuple(blocks)


def _fronts(trials: Sequence[Record], names: Sequence[str]) -> list[_Front]:
    """Seeds have experts of their own, so each has a front of its own."""
    fronts = []
    for seed in sorted({trial.seed for trial in trials}):
        settings = tuple(
            setting for trial in trials if trial.seed == seed for setting in last_settings(trial)
        )
        points = np.array(
            [[100 * setting.objectives[name] for name in names] for setting in settings]
        ).reshape(len(settings), len(names))
        fronts.append(
            _Front(seed=seed, settings=settings, points=points, on_front=pareto_front(points))
        )
    return fronts


def _figure(
    run: Run,
    method: str,
    trials: Sequence[Record],
    names: Sequence[str],
    fronts: Sequence[_Front],
) -> Plot:
    pairs = list(combinations(range(len(names)), 2))
    drawings, png = render(
        [
            Panel(
                slug=f"pareto-{slug(method)}-{across}-{up}",
                title=f"{_title(names[up])} (%)",
                draw=partial(_scatter, fronts=fronts, across=across, up=up, names=names),
            )
            for across, up in pairs
        ]
    )
    line = "" if len(names) > 2 else " Line: what the front's settings reach."
    return Plot(
        name=f"pareto_{slug(method)}",
        caption=(
            f"{run.method_title(method)}, searched for {listed([_title(n) for n in names])}. Every "
            "setting that was judged on all validation examples; full and ringed: on the front of "
            "its seed, which is to say that no other setting is at least as good in every "
            f"objective and better in one. Marks are seeds ({mark_legend(trials)}).{line}"
        ),
        alt=(
            f"{run.method_title(method)}: the objectives of "
            f"{sum(len(front.settings) for front in fronts)} settings against each other; the "
            "table below has those on the front."
        ),
        drawings=drawings,
        png=png,
    )


def _scatter(
    axes: Axes,
    palette: Palette,
    *,
    fronts: Sequence[_Front],
    across: int,
    up: int,
    names: Sequence[str],
) -> None:
    style_axes(axes, palette)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.margins(0.06, 0.1)
    for front in fronts:
        colour, mark = seed_colour(palette, front.seed), seed_mark(front.seed)
        others, best = front.points[~front.on_front], front.points[front.on_front]
        axes.plot(
            others[:, across], others[:, up],
            mark, color=colour, alpha=0.3, markersize=4.5, markeredgewidth=0, linestyle="none",
        )  # fmt: skip
        if len(names) == 2:
            along = best[np.argsort(best[:, across], kind="stable")]
            # Between two settings of the front nothing better than the lower one is known.
            axes.plot(
                along[:, across], along[:, up],
                color=colour, linewidth=1.2, drawstyle="steps-pre",
            )  # fmt: skip
        axes.plot(
            best[:, across], best[:, up],
            mark, color=colour, markersize=6.5, markeredgecolor=palette.ink, markeredgewidth=1,
            linestyle="none",
        )  # fmt: skip
    axes.locator_params(axis="both", nbins=5)
    axes.set_xlabel(f"{_title(names[across])} (%)", size=TEXT, color=palette.ink, labelpad=6)


def _table(run: Run, method: str, names: Sequence[str], fronts: Sequence[_Front]) -> Table:
    searched = [axis.name for axis in slice_axes(run, method)]
    rows: list[TableRow] = []
    for front in fronts:
        chosen = np.flatnonzero(front.on_front)
        order = chosen[np.argsort(-front.points[chosen, 0], kind="stable")]
        for place, index in enumerate(order):
            setting = front.settings[index]
            values = [plain(float(value)) for value in front.points[index]]
            rows.append(
                TableRow(
                    cells=(
                        *words(str(front.seed), _params(setting.params, searched)),
                        *numbers(values),
                    ),
                    starts_group=bool(rows) and place == 0,
                )
            )
    return Table(
        name=f"pareto_{slug(method)}",
        caption=f"{run.method_title(method)}: settings on the Pareto front, on validation data",
        header=("Seed", "Parameters", *(f"{_title(name).capitalize()} (%)" for name in names)),
        rows=tuple(rows),
        notes=("Each seed has experts of its own, and so a front of its own.",),
    )


def _params(params: Mapping[str, object], searched: Sequence[str]) -> str:
    names = [name for name in searched if name in params] or sorted(params)
    return ", ".join(f"{name} = {number(params[name])}" for name in names)


def _title(name: str) -> str:
    return OBJECTIVES.get(name, name)
