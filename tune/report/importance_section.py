"""Figure and table of how much each parameter matters."""

from collections.abc import Mapping
from fractions import Fraction
from functools import partial

from matplotlib.axes import Axes

from tune.report.canvas import TEXT, fit_labels, mark, style_axes
from tune.report.document import Plot, Table, TableRow, Text, numbers, words
from tune.report.formatting import counted, listed
from tune.report.importance import LEFT_OUT, SUBSETS, TARGET, Importance, Missing, importance
from tune.report.palette import Palette
from tune.report.panels import WIDTH, Panel, render
from tune.report.run import Run
from tune.report.search_figures import slice_axes, slug

_ROW = 34.0


def importance_blocks(run: Run) -> tuple[Text | Plot | Table, ...]:
    """What can be said of the importance of parameters; nothing where no method has any."""
    methods = dict.fromkeys([*run.manifest.methods, *(trial.method for trial in run.trials)])
    found: dict[str, Importance] = {}
    missing: dict[Missing, list[str]] = {}
    for method in methods:
        trials = [trial for trial in run.trials if trial.method == method]
        axes = slice_axes(run, method)
        if not trials or not axes:
            continue
        result = importance(trials, axes)
        if isinstance(result, Importance):
            found[method] = result
        else:
            missing.setdefault(result, []).append(run.method_title(method))
    said = [_absence(reason, titles) for reason, titles in missing.items()]
    absences = [Text(text=" ".join(said))] if said else []
    if not found:
        return tuple(absences)
    return (_figure(run, found), _table(run, found), *absences)


def _absence(reason: Missing, titles: list[str]) -> str:
    return f"The importance of parameters is not shown for {listed(titles)}: {reason.value}."


def _figure(run: Run, found: Mapping[str, Importance]) -> Plot:
    rows = max(len(result.weights) for result in found.values())
    names = [weight.name for result in found.values() for weight in result.weights]
    _, left = fit_labels(names, 0.45 * WIDTH)
    drawings, png = render(
        [
            Panel(
                slug=f"importance-{slug(method)}",
                title=run.method_title(method),
                left=left,
                height=_ROW * rows + 72,
                draw=partial(_bars, result=result, rows=rows, room=left),
            )
            for method, result in found.items()
        ]
    )
    return Plot(
        name="importance",
        caption=(
            f"How much each parameter matters to {run.manifest.chosen_by} on validation data. Bar "
            "and interval: PED-ANOVA, which adds up to 1, by how differently the best "
            f"{100 * TARGET:g} % of settings and all settings are spread over the parameter. Disc: "
            "fANOVA, the share of a random forest's variance that the parameter explains by "
            "itself; what is missing to 1 is interaction and noise. Dashed line: all parameters "
            "alike, which is also where PED-ANOVA tends if none has an effect."
        ),
        alt="Importance of the parameters by method; the table below has the values.",
        drawings=drawings,
        png=png,
    )


def _bars(axes: Axes, palette: Palette, *, result: Importance, rows: int, room: float) -> None:
    style_axes(axes, palette)
    names, _ = fit_labels([weight.name for weight in result.weights], room)
    for line, weight in enumerate(result.weights):
        axes.barh(line, weight.ped_anova, height=0.42, color=palette.accent, alpha=0.55)
        axes.plot([weight.low, weight.high], [line, line], color=palette.ink, linewidth=1.4)
        mark(axes, weight.fanova, line, palette.second, palette.second)
    axes.axvline(
        1 / len(result.weights), color=palette.muted, linewidth=1.2, dashes=(4, 3), zorder=1
    )
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names, parse_math=False, color=palette.ink, size=TEXT)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance", size=TEXT, color=palette.ink, labelpad=6)


def _table(run: Run, found: Mapping[str, Importance]) -> Table:
    rows: list[TableRow] = []
    for method, result in found.items():
        judged = f"{counted(result.settings, 'setting')} of {counted(result.trials, 'trial')}"
        for line, weight in enumerate(result.weights):
            interval = f"{weight.ped_anova:.2f} [{weight.low:.2f}, {weight.high:.2f}]"
            rows.append(
                TableRow(
                    cells=(
                        *words(run.method_title(method), weight.name),
                        *numbers([interval, f"{weight.fanova:.2f}", _share(result.share)]),
                        *words(judged),
                    ),
                    starts_group=bool(rows) and line == 0,
                )
            )
    return Table(
        name="importance",
        caption="Importance of the parameters, by the evaluators of Optuna",
        header=("Method", "Parameter", "PED-ANOVA", "fANOVA", "Examples", "From"),
        rows=tuple(rows),
        notes=(
            f"{_origin(found)} Seeds are pooled, each with its mean subtracted.",
            f"[95 % interval]: over the choice of trials, from {SUBSETS} subsets that each lack "
            f"{100 * LEFT_OUT:g} % of them. PED-ANOVA adds up to 1 by construction, so a share "
            "above 0 alone is no evidence of an effect.",
        ),
    )


def _origin(found: Mapping[str, Importance]) -> str:
    if all(result.share >= 1 for result in found.values()):
        return "From every trial that did not fail."
    return (
        "From the settings judged at the first rung, on that share of the validation examples: "
        "every trial reached it, so stopping trials early selects nothing."
    )


def _share(share: float) -> str:
    """A share of the validation examples: `all`, `1/9`."""
    return "all" if share >= 1 else str(Fraction(share).limit_denominator(1000))
