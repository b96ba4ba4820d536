"""Published results of another suite, for the reader's eye only: nothing is subtracted here."""

from collections.abc import Sequence

from apgd.published import Confidence, Family, PublishedRow, published_rows, task_title
from tune.report.document import Section, Table, TableRow, Text, numbers, words
from tune.report.formatting import condition, listed, plain

_FAMILIES = {
    Family.OPENCLIP: "original OpenCLIP experts",
    Family.TRANSFORMERS: "experts trained anew for FusionBench",
    Family.NOT_STATED: "experts not stated",
}
_CORRUPTIONS = (
    "motion_blur",
    "impulse_noise",
    "gaussian_noise",
    "pixelate",
    "spatter",
    "contrast",
    "jpeg_compression",
)


def published_section() -> Section:
    """One table per protocol and family of experts."""
    explanation = Text(
        text="These figures are from other documents, on another suite: CLIP ViT-B/32 on the real "
        "data sets. They show what the methods did there; no number of this run may be subtracted "
        "from them. Two families of experts exist, with different baselines, so each has its own "
        "tables. A dagger marks what was derived and not read."
    )
    tables = [*_task_tables("in-domain"), *_task_tables("unseen"), _corruption_table()]
    return Section(
        name="published",
        title="Published results, on another suite",
        blocks=(explanation, *tables),
    )


def _task_tables(protocol: str) -> list[Table]:
    tables = []
    for family, label in _FAMILIES.items():
        rows = published_rows(protocol, family)
        if not rows:
            continue
        tasks = list(next(row.per_task for row in rows if row.per_task is not None))
        unseen = rows[0].unseen_tasks
        what = "6 tasks merged, 2 more tested" if unseen else "8 tasks merged and tested"
        header = [
            task_title(task) + (" (unseen)" if task in unseen else "")
            for task in sorted(tasks, key=lambda task: task not in unseen)
        ]
        tables.append(
            Table(
                name=f"published_{protocol.replace('-', '_')}_{family.replace(' ', '_')}",
                caption=f"Published, CLIP ViT-B/32, {label}: accuracy (%), {what}",
                header=("Method", "Mean of unseen" if unseen else "Mean", *header),
                rows=tuple(
                    _table_row(
                        row,
                        [
                            row.unseen_average if unseen else row.average,
                            *(
                                row.per_task.get(task) if row.per_task else None
                                for task in sorted(tasks, key=lambda task: task not in unseen)
                            ),
                        ],
                    )
                    for row in rows
                ),
                notes=_sources(rows),
            )
        )
    return tables


def _corruption_table() -> Table:
    family = Family.TRANSFORMERS
    by_condition = {name: published_rows(name, family) for name in ("clean", *_CORRUPTIONS)}
    clean = by_condition["clean"]
    tasks = [task_title(task) for task in clean[0].per_task or ()]
    rows = []
    for row in clean:
        averages = [
            next((found.average for found in rows if found.method == row.method), None)
            for rows in by_condition.values()
        ]
        rows.append(_table_row(row, averages))
    return Table(
        name="published_corruptions",
        caption=(
            f"Published, CLIP ViT-B/32, {_FAMILIES[family]}: accuracy (%) under corruptions, "
            f"mean over {', '.join(tasks)}"
        ),
        header=("Method", *(condition(name) for name in by_condition)),
        rows=tuple(rows),
        notes=_sources(clean),
    )


def _table_row(row: PublishedRow, values: Sequence[float | None]) -> TableRow:
    return TableRow(cells=(*words(_title(row)), *numbers([plain(value) for value in values])))


def _title(row: PublishedRow) -> str:
    return row.title + (" †" if row.confidence is Confidence.DERIVED else "")


def _sources(rows: Sequence[PublishedRow]) -> tuple[str, ...]:
    documents = dict.fromkeys(f"{row.document}, {row.where}".rstrip(".") for row in rows)
    about: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            about.setdefault(row.note, []).append(_title(row))
    remarks = [f"{listed(titles)}: {note}." for note, titles in about.items()]
    return (f"Sources: {'; '.join(documents)}.", *remarks)
