"""The section about the search: what it tried and what it chose."""

from tune.records import Record
from tune.report.document import Details, Section, Table, TableRow, Text, numbers, words
from tune.report.formatting import counted, number, plain
from tune.report.run import Run, best_trials, objective
from tune.report.search_figures import search_figure

_MANY = 8
"""More figures than this are shown when asked for."""


def search_section(run: Run) -> Section:
    """What the search saw and chose."""
    if not run.trials:
        nothing = Text(text="No trial has been recorded: every merge uses its published settings.")
        return Section(name="search", title="Search", blocks=(nothing,))
    methods = dict.fromkeys([*run.manifest.methods, *(trial.method for trial in run.trials)])
    figures = [figure for method in methods if (figure := search_figure(run, method))]
    best = best_trials(run.trials)
    rows: list[TableRow] = []
    for method in methods:
        for first, place in enumerate(sorted(key for key in best if key[0] == method)):
            trial = best[place]
            count = sum((other.method, other.seed) == place for other in run.trials)
            rows.append(
                TableRow(
                    cells=(
                        *words(run.method_title(method)),
                        *numbers([str(trial.seed)]),
                        *words(_params(run, trial)),
                        *numbers([plain(100 * objective(trial)), str(count)]),
                    ),
                    starts_group=bool(rows) and first == 0,
                )
            )
    winners = Table(
        name="winners",
        caption=f"The best trial of every method and seed, by mean {run.manifest.measure} on "
        "validation data",
        header=("Method", "Seed", "Parameters", "Validation (%)", "Trials"),
        rows=tuple(rows),
        notes=("Chosen without test data; the highest of many trials flatters itself a little.",),
    )
    if len(figures) <= _MANY:
        return Section(name="search", title="Search", blocks=(winners, *figures))
    summary = f"Every trial of {counted(len(figures), 'method')} against its parameters"
    folded = Details(summary=summary, blocks=tuple(figures))
    return Section(name="search", title="Search", blocks=(winners, folded))


def _params(run: Run, trial: Record) -> str:
    """The searched parameters; all of them where the searched ones are not known."""
    searched = [axis.name for axis in run.axes.get(trial.method, ())]
    names = [name for name in searched if name in trial.params] or sorted(trial.params)
    return ", ".join(f"{name} = {number(trial.params[name])}" for name in names) or "no parameters"
