"""The first sentence: what came out, whichever way it went."""

from collections.abc import Sequence

from apgd.statistics import Interval
from tune.records import Variant
from tune.report.document import Tiles
from tune.report.formatting import ABSENT, percent, points
from tune.report.measures import Column, Measured, Row, differences
from tune.report.run import EXPERTS, PRETRAINED, RowKey, Run

SUBJECT = "doge_ta"
"""The method that the report is about."""


def has_apgd(method: str) -> bool:
    """Whether the paper's modification vector is part of a method."""
    return method.startswith("doge_") or method.endswith("+apgd")


def subject_row(run: Run) -> RowKey | None:
    """The row that the headline is about: the tuned one, or where it is absent the published."""
    for variant in (Variant.TUNED, Variant.PUBLISHED):
        if RowKey(SUBJECT, variant) in run.rows:
            return RowKey(SUBJECT, variant)
    return None


def rivals(run: Run, subject: RowKey) -> tuple[RowKey, ...]:
    """The merges by other methods that `subject` is measured against.

    Published settings are set against published settings only, since tuned ones have seen
    validation data; tuned ones are set against both.
    """
    return tuple(
        row
        for row in run.rows
        if row.is_merge
        and row.method != subject.method
        and (subject.variant is Variant.TUNED or row.variant is Variant.PUBLISHED)
    )


def headline(run: Run, main: Measured, columns: Sequence[Column]) -> str:
    """The sentence, computed from the main table's means."""
    subject = subject_row(run)
    name = run.method_title(SUBJECT)
    row = main.row(subject) if subject else None
    if subject is None or row is None or row.values[0] is None:
        return f"{name} has no complete result yet."
    best = best_rival(run, main, subject)
    result = f"{row.title} reaches {percent(row.values[0])} % mean {run.manifest.measure}"
    if best is None:
        return f"{result}; there is no other method to compare it with yet."
    gaps = differences(run, "headline", subject, [best.key], columns[:1])
    gap = gaps.rows[0].values[0] if gaps.rows else None
    if gap is None:
        return f"{result}; it shares no seed with the best other method, {best.title}."
    return f"{result}, {_compared(gap, best.title)}."


def _compared(gap: Interval, rival: str) -> str:
    if not gap.includes_zero and gap.estimate > 0:
        return f"{points(gap)} percentage points over the best other method, {rival}"
    verdict = "not distinguishable from" if gap.includes_zero else "behind"
    return f"{verdict} the best other method, {rival}: {points(gap)} percentage points"


def best_rival(run: Run, main: Measured, subject: RowKey) -> Row | None:
    """The row with the highest mean among those that `subject` is measured against."""
    candidates = [row for row in main.rows if row.key in rivals(run, subject)]
    complete = [(row.values[0].estimate, row) for row in candidates if row.values[0] is not None]
    return max(complete, key=lambda pair: pair[0])[1] if complete else None


def tiles(run: Run, main: Measured) -> Tiles:
    """Where the subject stands: from the pretrained model to the experts."""
    subject = subject_row(run)
    rival = best_rival(run, main, subject) if subject else None
    shown = [
        ("Zero-shot", main.row(PRETRAINED), "pretrained model, nothing merged"),
        ("Best other method", rival, rival.title if rival else ""),
        (run.method_title(SUBJECT), main.row(subject) if subject else None, _settings(subject)),
        ("Single experts", main.row(EXPERTS), "one model per task"),
    ]
    return Tiles(
        items=tuple(
            (label, percent(row.values[0]) if row else ABSENT, detail)
            for label, row, detail in shown
        )
    )


def _settings(subject: RowKey | None) -> str:
    if subject is None:
        return "not evaluated yet"
    tuned = subject.variant is Variant.TUNED
    return "tuned on validation data" if tuned else "published settings"
