"""The section about the search: what it tried, what it chose, and what mattered."""

from collections import Counter
from collections.abc import Sequence

from tune.records import Record
from tune.report.convergence_figure import convergence_figure
from tune.report.document import (
    Block,
    Details,
    Plot,
    Section,
    Table,
    TableRow,
    Text,
    Warnings,
    numbers,
    words,
)
from tune.report.formatting import ABSENT, counted, listed, number, plain
from tune.report.importance_section import importance_blocks
from tune.report.pareto_section import pareto_blocks
from tune.report.run import Run
from tune.report.search_figures import search_figure, slice_axes
from tune.report.trials import Outcome, Place, best_trials, objective, of_outcome

_MANY = 8
"""More figures, or failures, than this are shown when asked for."""
_VALIDATION = "validation"


def search_section(run: Run) -> Section:
    """What the search saw and chose."""
    if not run.trials:
        nothing = Text(text="No trial has been recorded: every merge uses its published settings.")
        return Section(name="search", title="Search", blocks=(nothing,))
    methods = dict.fromkeys([*run.manifest.methods, *(trial.method for trial in run.trials)])
    slices = [figure for method in methods if (figure := search_figure(run, method))]
    convergence = convergence_figure(run)
    measured = importance_blocks(run)
    blocks: list[Block | Details] = [_winners(run), *_reads(run.trials), *_failures(run)]
    figures = [*([convergence] if convergence else []), *slices]
    if len(slices) > _MANY:
        figures += [block for block in measured if isinstance(block, Plot)]
        summary = f"Every trial of {counted(len(slices), 'method')} against its parameters"
        blocks.append(Details(summary=summary, blocks=tuple(figures)))
        blocks += [block for block in measured if not isinstance(block, Plot)]
    else:
        blocks += [*figures, *measured]
    blocks += pareto_blocks(run)
    return Section(name="search", title="Search", blocks=tuple(blocks))


def _winners(run: Run) -> Table:
    methods = dict.fromkeys([*run.manifest.methods, *(trial.method for trial in run.trials)])
    best = best_trials(run.trials)
    # Where every trial was judged in full, three columns would say what one does.
    split = len(of_outcome(run.trials, Outcome.FULL)) < len(run.trials)
    rows: list[TableRow] = []
    for method in methods:
        seeds = sorted({trial.seed for trial in run.trials if trial.method == method})
        for first, place in enumerate(Place(method, seed) for seed in seeds):
            own = [trial for trial in run.trials if (trial.method, trial.seed) == place]
            trial = best.get(place)
            counts = [str(len(of_outcome(own, kind))) for kind in Outcome] if split else []
            rows.append(
                TableRow(
                    cells=(
                        *words(run.method_title(method)),
                        *numbers([str(place.seed)]),
                        *words("none judged in full" if trial is None else _params(run, trial)),
                        *numbers([ABSENT if trial is None else plain(100 * objective(trial))]),
                        *numbers([str(len(own)), *counts]),
                    ),
                    starts_group=bool(rows) and first == 0,
                )
            )
    outcomes = ("In full", "Stopped early", "Failed") if split else ()
    notes = ["Chosen without test data; the highest of many trials flatters itself a little."]
    if split:
        notes.append(
            "In full: judged on all validation examples, and only such a trial can be the best. "
            "Stopped early: its score on a part of them was not among the better ones."
        )
    return Table(
        name="winners",
        caption=f"The best trial of every method and seed, by {run.manifest.chosen_by} on "
        "validation data",
        header=("Method", "Seed", "Parameters", "Validation (%)", "Trials", *outcomes),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _reads(trials: Sequence[Record]) -> tuple[Block, ...]:
    """What the trials read, by their own records; nothing where they do not say."""
    counts = Counter[str]()
    for trial in trials:
        counts.update(trial.details.get("reads", {}))
    others = {split: count for split, count in counts.items() if not _is_validation(split)}
    if others:
        named = listed([f"{split} ({count} times)" for split, count in sorted(others.items())])
        said = f"The search read data that it must not read: {named}."
        return (Warnings(items=(said,)),)
    if not counts:
        return ()
    times = f"{sum(counts.values()):,}".replace(",", " ")
    return (
        Text(
            text=f"The search read validation data only: {times} times over all its trials, by "
            "their records. No trial has read a test example."
        ),
    )


def _is_validation(split: str) -> bool:
    """Whether it is the validation split, or its inputs without labels."""
    return split.split(",")[0] == _VALIDATION


def _failures(run: Run) -> tuple[Table | Details, ...]:
    """The trials that failed, with their errors."""
    failed = sorted(of_outcome(run.trials, Outcome.FAILED), key=lambda t: (t.method, t.seed))
    if not failed:
        return ()
    table = Table(
        name="failed_trials",
        caption=f"{counted(len(failed), 'trial')} failed; the search went on without them",
        header=("Method", "Seed", "Trial", "Error"),
        rows=tuple(
            TableRow(
                cells=(
                    *words(run.method_title(trial.method)),
                    *numbers([str(trial.seed), number(trial.details.get("number", ABSENT))]),
                    *words(str(trial.details.get("error") or "not recorded")),
                )
            )
            for trial in failed
        ),
    )
    if len(failed) <= _MANY:
        return (table,)
    return (Details(summary=table.caption, blocks=(table,)),)


def _params(run: Run, trial: Record) -> str:
    """The searched parameters; all of them where the searched ones are not known."""
    searched = [axis.name for axis in slice_axes(run, trial.method)]
    names = [name for name in searched if name in trial.params] or sorted(trial.params)
    return ", ".join(f"{name} = {number(trial.params[name])}" for name in names) or "no parameters"
