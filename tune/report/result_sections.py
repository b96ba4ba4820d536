"""The sections that compare methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from apgd.evidence import Need
from apgd.methods import SUFFIX
from tune.records import Variant
from tune.report.display import result_table
from tune.report.document import Block, Details, Section, Text, Warnings
from tune.report.formatting import counted, listed, percent, points
from tune.report.headline import SUBJECT, rivals
from tune.report.measures import (
    Column,
    Measured,
    corruption_columns,
    differences,
    measured,
    task_columns,
)
from tune.report.result_figures import accuracy_figure, difference_figure
from tune.report.run import EXPERTS, PRETRAINED, RowKey, Run

_MANY = 16
"""Tables of differences with more rows than this are shown when asked for."""


def main_table(run: Run) -> Measured:
    """Every row by every merged task."""
    return measured(run, "main", task_columns(run), with_relative=True)


def accuracy_section(run: Run, main: Measured) -> Section:
    """The main table and its figure."""
    if not main.rows:
        nothing = Text(text="No row has been evaluated yet.")
        return Section(
            name="accuracy", title=f"Test {run.manifest.measure}", blocks=(nothing, *gaps(run))
        )
    table = result_table(
        run,
        main,
        percent,
        caption=f"Test {run.manifest.measure} (%) by method and task, with the half-widths of 95 % "
        "intervals",
        notes=(
            "Mean: over the tasks, each counted alike. Of experts: the task's value divided by "
            "that of its own expert, mean over the tasks. Bold: the best merge of the column, "
            "whether or not it can be told from the next.",
            *((note,) if (note := run.manifest.measure_note) else ()),
            *_more_than_weights(run, main),
        ),
    )
    figure = accuracy_figure(run, main)
    blocks: list[Block] = [_uncertainty(run), *gaps(run), table]
    if figure:
        blocks.append(figure)
    return Section(name="accuracy", title=f"Test {run.manifest.measure}", blocks=tuple(blocks))


def _more_than_weights(run: Run, main: Measured) -> tuple[str, ...]:
    """Which rows have seen what others have not."""
    methods = dict.fromkeys(row.key.method for row in main.rows if row.key.is_merge)
    titles: dict[str, list[str]] = {"trained": [], "adapted": []}
    for method in methods:
        need = run.need(method)
        if need is not Need.NOTHING:
            kind = "trained" if need.is_statistic else "adapted"
            titles[kind].append(run.method_title(method))
    notes = []
    if titles["trained"]:
        notes.append(f"With statistics of training examples: {listed(titles['trained'])}.")
    if titles["adapted"]:
        notes.append(
            "Adapted, without labels, to the very test inputs of these tasks on which they are "
            f"scored here, as published: {listed(titles['adapted'])}. No other row has seen them."
        )
    shortened = run.manifest.shortened
    told = [
        f"{run.method_title(method)} ({_as_text(shortened[method.removesuffix(SUFFIX)])})"
        for method in methods
        if method.removesuffix(SUFFIX) in shortened
    ]
    if told:
        notes.append(f"Starting from shortened settings instead of published ones: {listed(told)}.")
    return tuple(notes)


def _as_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items())


def _uncertainty(run: Run) -> Text:
    if run.manifest.seeds == 1:
        return Text(
            text="There is one seed: the intervals come from the choice of test examples alone, "
            "and say nothing about how other experts would do."
        )
    return Text(
        text=f"Means over {counted(run.manifest.seeds, 'seed')}; the intervals cover the choice of "
        "test examples and that of the seed. They are computed row by row: whether two methods "
        "differ is answered by the paired differences, not by whether two intervals overlap."
    )


def gaps(run: Run) -> tuple[Warnings, ...]:
    """What is missing from the tables, in sentences."""
    sentences = list(run.remarks)
    if run.manifest.finished is None:
        sentences.append("The run has not finished; this is what it has so far.")
    expected = set(range(run.manifest.seeds))
    for row in run.rows:
        absent = sorted(expected - set(run.answers[row]))
        if absent:
            word = "seed" if len(absent) == 1 else "seeds"
            sentences.append(f"{run.row_title(row)}: {word} {listed(absent)} missing.")
    for method in run.manifest.methods:
        rows = [row for row in run.rows if row.method == method]
        if not rows:
            sentences.append(f"{run.method_title(method)}: not evaluated yet.")
        elif RowKey(method, Variant.TUNED) not in rows and any(
            trial.method == method for trial in run.trials
        ):
            sentences.append(f"{run.method_title(method)}: searched, but no winner evaluated yet.")
    for name in run.manifest.references:
        row = RowKey(name, Variant.REFERENCE)
        if row not in run.rows and row not in (PRETRAINED, EXPERTS):
            sentences.append(f"{run.row_title(row)}: not evaluated yet.")
    if EXPERTS not in run.rows:
        state = "not evaluated yet" if EXPERTS.method in run.manifest.references else "left out"
        sentences.append(f"Single experts: {state}, so nothing is relative to them.")
    return (Warnings(items=tuple(sentences)),) if sentences else ()


def difference_measures(run: Run) -> tuple[Measured, ...]:
    """The tuned subject minus every other row; the published one minus other published rows."""
    columns = task_columns(run)
    tables = []
    tuned, published = (RowKey(SUBJECT, v) for v in (Variant.TUNED, Variant.PUBLISHED))
    if tuned in run.rows:
        others = [row for row in run.rows if row != tuned]
        tables.append(differences(run, "differences_tuned", tuned, others, columns))
    if published in run.rows:
        others = list(rivals(run, published))
        tables.append(differences(run, "differences_published", published, others, columns))
    return tuple(table for table in tables if table.rows)


def difference_section(run: Run, tables: Sequence[Measured]) -> Section:
    """Paired differences, as figures and tables."""
    name = run.method_title(SUBJECT)
    blocks: list[Block | Details] = []
    for table in tables:
        subject = f"{name} ({table.name.removeprefix('differences_')})"
        figure = difference_figure(table.name, table, subject)
        if figure:
            blocks.append(figure)
        listed_rows = result_table(
            run,
            table,
            points,
            caption=f"{subject} minus each other row, in percentage points [95 % interval]",
            notes=(
                "Paired by test example and by seed. Every interval stands for itself: among "
                "twenty of them one is expected to miss the true value.",
            ),
            mark_best=False,
        )
        if len(table.rows) > _MANY:
            summary = f"{subject} minus each of {len(table.rows)} rows, task by task"
            blocks.append(Details(summary=summary, blocks=(listed_rows,)))
        else:
            blocks.append(listed_rows)
    if not blocks:
        blocks.append(Text(text=f"{name} and another row are needed for a difference."))
    return Section(name="differences", title="Paired differences", blocks=tuple(blocks))


def unseen_measures(run: Run) -> Measured:
    """Every row by the tasks that no expert saw."""
    names = [task.name for task in run.manifest.unseen]
    return measured(run, "unseen", task_columns(run, names))


def unseen_section(run: Run, table: Measured) -> Section | None:
    """Tasks that no expert saw; None for a suite without them."""
    if not run.manifest.unseen:
        return None
    return _measured_section(
        run,
        table,
        "unseen",
        "Unseen tasks",
        f"Test {run.manifest.measure} (%) on tasks that no expert was trained on",
        ("The single experts have no row here: there is none for these tasks.",),
    )


def corruption_measures(run: Run) -> Measured:
    """Every row by corruption."""
    columns: tuple[Column, ...] = corruption_columns(run)
    return measured(run, "corruptions", columns)


def corruption_section(run: Run, table: Measured) -> Section | None:
    """Corrupted test images; None for a suite without them."""
    if not run.manifest.corrupted or not run.manifest.corruptions:
        return None
    tasks = listed([run.manifest.task(name).title for name in run.manifest.corrupted])
    return _measured_section(
        run,
        table,
        "corruptions",
        "Corrupted images",
        f"Test accuracy (%) under corruptions, mean over {tasks}",
        (
            "Mean: over the corruptions; the versions of one image count as one example. "
            "Clean: the same images, uncorrupted.",
        ),
    )


def _measured_section(
    run: Run, table: Measured, name: str, title: str, caption: str, notes: tuple[str, ...]
) -> Section:
    if table.rows:
        block: Block = result_table(run, table, percent, caption=caption, notes=notes)
    else:
        block = Text(text="No row has been evaluated on these yet.")
    return Section(name=name, title=title, blocks=(block,))
