"""Measured rows as tables for people."""

from collections.abc import Callable, Sequence

from apgd.statistics import Interval
from tune.records import Variant
from tune.report.document import Cell, Table, TableRow, numbers, words
from tune.report.formatting import listed
from tune.report.measures import Measured, Row
from tune.report.run import Run

ROW_HEADER = "Method"


def result_table(
    run: Run,
    measured: Measured,
    write: Callable[[Interval | None], str],
    *,
    caption: str,
    notes: Sequence[str] = (),
    mark_best: bool = True,
) -> Table:
    """A table with one text per interval.

    Args:
        run: the records.
        measured: what to show.
        write: the text of one interval.
        caption: the table's caption.
        notes: sentences under it.
        mark_best: whether the best merge of every column is set in bold.
    """
    best = _best_rows(measured) if mark_best else [None] * len(measured.columns)
    rows = []
    previous: Row | None = None
    for row in measured.rows:
        texts = numbers([write(value) for value in row.values])
        cells = tuple(
            Cell(text=cell.text, strong=best[index] is row) for index, cell in enumerate(texts)
        )
        rows.append(
            TableRow(
                cells=(*words(row.title), *cells),
                starts_group=previous is not None and _group(previous) != _group(row),
                detail=_seeds_note(run, row),
            )
        )
        previous = row
    return Table(
        name=measured.name,
        caption=caption,
        header=(ROW_HEADER, *measured.columns),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _best_rows(measured: Measured) -> list[Row | None]:
    best: list[Row | None] = []
    for index in range(len(measured.columns)):
        merges = [
            (value.estimate, row)
            for row in measured.rows
            if row.key.is_merge and (value := row.values[index]) is not None
        ]
        best.append(max(merges, key=lambda pair: pair[0])[1] if len(merges) > 1 else None)
    return best


def _group(row: Row) -> str:
    return row.key.method if row.key.variant is not Variant.REFERENCE else ""


def _seeds_note(run: Run, row: Row) -> str:
    """Which seeds a row is from, where it is not all of them."""
    if len(row.seeds) >= run.manifest.seeds:
        return ""
    return f"{'seed' if len(row.seeds) == 1 else 'seeds'} {listed(row.seeds)} only"
