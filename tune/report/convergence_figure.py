"""How fast the searches got better."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tune.records import Record
from tune.report.canvas import TEXT, style_axes
from tune.report.document import Plot
from tune.report.formatting import counted
from tune.report.palette import Palette
from tune.report.panels import Panel, render
from tune.report.run import Run
from tune.report.search_figures import slug
from tune.report.seeds import line_legend, seed_colour, seed_line, seeds_of
from tune.report.trials import Outcome, objective, of_outcome, outcome


def convergence_figure(run: Run) -> Plot | None:
    """The best score so far against the number of trials; None where none was judged in full."""
    methods = dict.fromkeys(trial.method for trial in of_outcome(run.trials, Outcome.FULL))
    order = [name for name in run.manifest.methods if name in methods]
    order += [name for name in methods if name not in order]
    if not order:
        return None
    searches = {
        method: [trial for trial in run.trials if trial.method == method] for method in order
    }
    drawings, png = render(
        [
            Panel(
                slug=f"convergence-{slug(method)}",
                title=run.method_title(method),
                draw=partial(_convergence, trials=trials),
            )
            for method, trials in searches.items()
        ]
    )
    return Plot(
        name="convergence",
        caption=(
            f"The best {run.manifest.chosen_by} (%) on validation data so far against the "
            "number of trials, in the order in which they were suggested; a line per seed "
            f"({line_legend(run.trials)}). Trials that were stopped early or failed count on the "
            "horizontal axis, but set no best score."
        ),
        alt=(
            f"Best {run.manifest.chosen_by} so far of "
            f"{counted(len(order), 'search', 'searches')} against the number of trials."
        ),
        drawings=drawings,
        png=png,
    )


def best_so_far(trials: Sequence[Record]) -> list[float]:
    """After each trial, the best objective of those judged in full until then; -∞ before the first.

    Args:
        trials: of one method and seed, in the order of their suggestion.
    """
    reached = []
    best = float("-inf")
    for trial in trials:
        if outcome(trial) is Outcome.FULL:
            best = max(best, objective(trial))
        reached.append(best)
    return reached


def _convergence(axes: Axes, palette: Palette, *, trials: Sequence[Record]) -> None:
    style_axes(axes, palette)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.margins(0.04, 0.1)
    for seed in seeds_of(trials):
        curve = best_so_far([trial for trial in trials if trial.seed == seed])
        steps = [(x, 100 * y) for x, y in enumerate(curve, start=1) if y > float("-inf")]
        if not steps:
            continue
        colour = seed_colour(palette, seed)
        axes.plot(
            [x for x, _ in steps], [y for _, y in steps],
            color=colour, linewidth=1.8, linestyle=seed_line(seed),
            drawstyle="steps-post",
        )  # fmt: skip
        axes.plot(*steps[-1], "o", color=colour, markersize=4.5, markeredgewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.locator_params(axis="y", nbins=5)
    axes.set_xlabel("trials", size=TEXT, color=palette.ink, labelpad=6)
