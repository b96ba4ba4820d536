"""Ours beside the published, cell by cell, with a verdict that says why.

A published merge can only be expected to come out again where the models that it starts from do.
So in every column the pretrained model and the single experts are compared first, and a merge is
judged only where both agree.
"""

from dataclasses import dataclass
from enum import StrEnum

from apgd.published import IN_DOMAIN, TOLERANCE, Family, PublishedRow, published_rows
from apgd.statistics import Interval
from tune.records import Variant
from tune.report.document import Section, Table, TableRow, Text, Warnings, numbers, words
from tune.report.formatting import ABSENT, counted, minus, percent, plain
from tune.report.formatting import condition as titled
from tune.report.measures import Column, measured
from tune.report.published_section import FAMILIES, published_beside
from tune.report.run import EXPERTS, PRETRAINED, Run


class Verdict(StrEnum):
    """What became of one cell."""

    PASS = "pass"  # noqa: S105 - not a password
    """Within the tolerance."""
    FAIL = "fail"
    """Further away than the tolerance."""
    NOT_JUDGED = "not judged"
    """A merge whose starting points already differ from the published ones."""
    NOT_COMPARABLE = "not comparable"
    """There is no published value for it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of ours beside the published one, in percent."""

    row: str
    column: str
    ours: Interval
    """As a share."""
    published: float | None
    verdict: Verdict
    source: str
    """Where the published value stands."""

    @property
    def difference(self) -> float | None:
        """Ours minus the published, in percentage points."""
        return None if self.published is None else 100 * self.ours.estimate - self.published


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run beside the published results of its suite and family of experts."""

    cells: tuple[Cell, ...]
    tolerance: float
    """In percentage points."""
    remark: str
    """What was compared with what, or why nothing was."""

    def count(self, verdict: Verdict) -> int:
        """Cells with that verdict."""
        return sum(cell.verdict is verdict for cell in self.cells)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.cells:
            return self.remark
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in Verdict)
        return (
            f"{counts} of {counted(len(self.cells), 'cell')}, within {self.tolerance:g} points; "
            f"{self.remark}"
        )


def compare(run: Run, tolerance: float = TOLERANCE) -> Comparison:
    """Put every row with published settings, and the references, beside the published rows.

    Args:
        run: the records.
        tolerance: percentage points within which a cell passes.
    """
    manifest = run.manifest
    family = manifest.experts_family

    def nothing(why: str) -> Comparison:
        return Comparison(cells=(), tolerance=tolerance, remark=why)

    if manifest.published_suite != manifest.suite_name:
        return nothing(f"no document speaks of the suite {manifest.suite_name}")
    if manifest.smoke:
        return nothing("the numbers of a smoke run cannot be compared with anything")
    if family in (None, Family.NOT_STATED):
        return nothing("the run's experts belong to no published family")
    agreed: dict[str | None, bool] = {}
    cells: list[Cell] = []
    for condition in ("test", *manifest.corruptions):
        cells += _cells(run, condition, family, tolerance, agreed)
    if not cells:
        return nothing(f"no published rows with {FAMILIES[family]} are known")
    remark = f"published with {FAMILIES[family]}"
    return Comparison(cells=tuple(cells), tolerance=tolerance, remark=remark)


def _cells(
    run: Run, condition: str, family: Family, tolerance: float, agreed: dict[str | None, bool]
) -> list[Cell]:
    """The cells of uncorrupted (`test`) or corrupted test data.

    `agreed` says by task, and by None for the mean, whether the pretrained model and the experts
    came out as published; the uncorrupted data write it, and corrupted ones read it, since no
    document has these two rows under corruptions.
    """
    manifest = run.manifest
    if condition == "test":
        protocol = "unseen" if manifest.unseen else IN_DOMAIN
        names = [task.name for task in (*manifest.tasks, *manifest.unseen)]
        prefix = ""
    else:
        protocol, names, prefix = condition, list(manifest.corrupted), f"{titled(condition)}: "
    rows = {row.method: row for row in published_rows(manifest.suite_name, protocol, family)}
    if not rows:
        return []
    where = {name: (f"{condition}/{name}",) for name in names}
    columns = [
        Column(title="Mean", cells=where),
        *(Column(title=name, cells={name: where[name]}) for name in names),
    ]
    table = measured(run, f"compared_{condition}", columns)
    starting = [row for row in table.rows if row.key in (PRETRAINED, EXPERTS)]
    # What follows from them, with nothing tuned: merges, and the other references.
    following = [
        row for row in table.rows if row not in starting and row.key.variant is not Variant.TUNED
    ]
    places = [None, *names]  # None: the mean
    if condition == "test":
        agreed.update(dict.fromkeys(places, len(starting) == 2))
    cells = []
    for row in (*starting, *following):
        theirs = published_beside(rows, row.key.method)
        for place, ours in zip(places, row.values, strict=True):
            if ours is None:
                continue
            value = _value(theirs, place)
            verdict = _verdict(ours, value, tolerance)
            if row in starting and condition == "test":
                agreed[place] &= verdict is Verdict.PASS
            elif row in following and value is not None and not agreed.get(place):
                verdict = Verdict.NOT_JUDGED
            cells.append(
                Cell(
                    row=row.title,
                    column=prefix + ("Mean" if place is None else manifest.task(place).title),
                    ours=ours,
                    published=value,
                    verdict=verdict,
                    source="" if theirs is None else f"{theirs.document}, {theirs.where}",
                )
            )
    return cells


def _value(row: PublishedRow | None, column: str | None) -> float | None:
    if row is None:
        return None
    if column is None:
        return None if row.unseen_tasks else row.average
    return None if row.per_task is None else row.per_task.get(column)


def _verdict(ours: Interval, published: float | None, tolerance: float) -> Verdict:
    if published is None:
        return Verdict.NOT_COMPARABLE
    # Published values are rounded to a tenth, so a half of one is no difference.
    apart = abs(100 * ours.estimate - published)
    return Verdict.PASS if apart <= tolerance + 0.05 else Verdict.FAIL


def comparison_table(compared: Comparison) -> Table:
    """Every cell: ours, published, difference, interval and verdict."""
    rows = []
    previous = ""
    for cell in compared.cells:
        first = cell.row != previous
        gap = cell.difference
        reach = 100 * cell.ours.half_width
        rows.append(
            TableRow(
                cells=(
                    *words(cell.row if first else "", cell.column),
                    *numbers(
                        [
                            percent(cell.ours),
                            plain(cell.published),
                            ABSENT
                            if gap is None
                            else minus(f"{gap:+.1f} [{gap - reach:.1f}, {gap + reach:.1f}]"),
                        ]
                    ),
                    *words(str(cell.verdict)),
                ),
                starts_group=first and bool(previous),
            )
        )
        previous = cell.row
    sources = dict.fromkeys(cell.source for cell in compared.cells if cell.source)
    return Table(
        name="comparison",
        caption="Ours beside the published, in percent",
        header=("Row", "Task", "Ours", "Published", "Difference", "Verdict"),
        rows=tuple(rows),
        notes=(
            f"Pass: at most {compared.tolerance:g} points apart. A merge is judged only in columns "
            "where the zero-shot and the single-expert rows pass. The interval of a difference is "
            "that of our value; published ones come without. Not comparable: no document has the "
            "value.",
            f"Sources: {'; '.join(sources)}.",
        ),
    )


def comparison_section(compared: Comparison) -> Section | None:
    """The comparison as a section; None where the suite has no published results."""
    if not compared.cells:
        return None
    verdict = Text(text=compared.sentence[0].upper() + compared.sentence[1:] + ".")
    failed = compared.count(Verdict.FAIL)
    warning = (
        (Warnings(items=(f"{counted(failed, 'cell')} did not come out as published.",)),)
        if failed
        else ()
    )
    return Section(
        name="comparison",
        title="Against the paper",
        blocks=(verdict, *warning, comparison_table(compared)),
    )
