"""Rows of intervals: what the tables and figures of results show."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apgd.statistics import Interval, Runs, accuracy, difference, relative
from tune.report.formatting import condition
from tune.report.run import EXPERTS, Answers, RowKey, Run

_CSV_HEADER = (
    *("table", "method", "variant", "title", "column"),
    *("estimate", "low", "high", "half_width", "df", "seeds", "examples"),
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is averaged for one column."""

    title: str
    cells: Mapping[str, tuple[str, ...]]
    """Cells of the mean, by task. Each lists the cells of the records that are averaged example by
    example, which is how several corruptions of the same images count as one sample."""
    as_many_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By task, cells of the records that hold fewer examples: only so many first ones count."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of intervals."""

    key: RowKey
    title: str
    seeds: tuple[int, ...]
    values: tuple[Interval | None, ...]
    """By column; None where an example set is missing, because a mean over fewer is another one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A table of intervals, as shares."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, key: RowKey) -> Row | None:
        """The row of that key, if it exists."""
        return next((row for row in self.rows if row.key == key), None)


def task_columns(run: Run, names: Sequence[str] | None = None) -> tuple[Column, ...]:
    """The mean over tasks (all that were merged, where none are named), then each task."""
    names = [task.name for task in run.manifest.tasks] if names is None else names
    cells = {name: (f"test/{name}",) for name in names}
    return (
        Column(title="Mean", cells=cells),
        *(
            Column(title=run.manifest.task(name).title, cells={name: cell})
            for name, cell in cells.items()
        ),
    )


def corruption_columns(run: Run) -> tuple[Column, ...]:
    """Mean over corruptions, the same images uncorrupted, then each corruption."""
    manifest = run.manifest
    everything = {
        task: tuple(f"{corruption}/{task}" for corruption in manifest.corruptions)
        for task in manifest.corrupted
    }
    clean = {task: (f"test/{task}",) for task in manifest.corrupted}
    return (
        Column(title="Mean", cells=everything),
        Column(title="Clean", cells=clean, as_many_as=everything),
        *(
            Column(
                title=condition(corruption),
                cells={task: (f"{corruption}/{task}",) for task in manifest.corrupted},
            )
            for corruption in manifest.corruptions
        ),
    )


def measured(
    run: Run, name: str, columns: Sequence[Column], *, with_relative: bool = False
) -> Measured:
    """Accuracies of every row that has at least one of the columns.

    Args:
        run: the records.
        name: name of the table.
        columns: what to average; the first is the table's mean.
        with_relative: whether to add the first column relative to the experts.
    """
    rows = []
    for key in run.rows:
        seeds = run.seeds(key)
        values = [_accuracy(run, key, seeds, column) for column in columns]
        if all(value is None for value in values):
            continue
        if with_relative:
            values.insert(1, _relative(run, key, columns[0]))
        rows.append(Row(key=key, title=run.row_title(key), seeds=seeds, values=tuple(values)))
    titles = [column.title for column in columns]
    if with_relative:
        titles.insert(1, "Of experts")
    return Measured(name=name, columns=tuple(titles), rows=tuple(rows))


def differences(
    run: Run, name: str, subject: RowKey, others: Sequence[RowKey], columns: Sequence[Column]
) -> Measured:
    """`subject` minus each other row, paired by example and seed, on the seeds that both have."""
    rows = []
    for key in others:
        seeds = run.seeds(subject, key)
        values = tuple(_difference(run, subject, key, seeds, column) for column in columns)
        if any(value is not None for value in values):
            rows.append(Row(key=key, title=run.row_title(key), seeds=seeds, values=values))
    titles = tuple(column.title for column in columns)
    return Measured(name=name, columns=titles, rows=tuple(rows))


def tidy_csv(tables: Sequence[Measured]) -> str:
    """All tables as one CSV text, a line per interval, in percent or percentage points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for table in tables:
        for row in table.rows:
            for column, value in zip(table.columns, row.values, strict=True):
                if value is None:
                    continue
                scaled = (value.estimate, value.low, value.high, value.half_width)
                writer.writerow(
                    [table.name, row.key.method, str(row.key.variant), row.title, column]
                    + [f"{100 * number:.4f}" for number in scaled]
                    + [f"{value.df:.1f}", value.seeds, value.examples]
                )
    return text.getvalue()


def _accuracy(run: Run, key: RowKey, seeds: Sequence[int], column: Column) -> Interval | None:
    found = results(run, key, seeds, column)
    return None if found is None else accuracy(found)


def _difference(
    run: Run, first: RowKey, second: RowKey, seeds: Sequence[int], column: Column
) -> Interval | None:
    ours, theirs = (results(run, key, seeds, column) for key in (first, second))
    return None if ours is None or theirs is None else difference(ours, theirs)


def _relative(run: Run, key: RowKey, column: Column) -> Interval | None:
    seeds = run.seeds(key, EXPERTS)
    ours, experts = (results(run, row, seeds, column) for row in (key, EXPERTS))
    if ours is None or experts is None:
        return None
    if not all(np.any(values) for seed in experts for values in seed.values()):
        return None  # An expert that is never right cannot be divided by.
    return relative(ours, experts)


def results(run: Run, key: RowKey, seeds: Sequence[int], column: Column) -> Runs | None:
    """A row's results by seed and cell; None where there is no seed or a seed lacks a cell."""
    by_seed = [_cells(run.answers[key][seed], column) for seed in seeds]
    complete = [cells for cells in by_seed if cells is not None]
    return complete if complete and column.cells and len(complete) == len(by_seed) else None


def _cells(answers: Answers, column: Column) -> dict[str, np.ndarray] | None:
    if not all(part in answers for parts in column.cells.values() for part in parts):
        return None
    results = {
        cell: np.asarray(np.mean([answers[part] for part in parts], axis=0, dtype=np.float64))
        for cell, parts in column.cells.items()
    }
    for cell, parts in column.as_many_as.items():
        lengths = [len(answers[part]) for part in parts if part in answers]
        results[cell] = results[cell][: min(lengths, default=len(results[cell]))]
    return results
