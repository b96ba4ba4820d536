"""Published results, for the reader's eye: nothing is subtracted here (see comparison.py)."""

from collections.abc import Mapping, Sequence

from apgd.published import IN_DOMAIN, Confidence, Family, PublishedRow, published_rows, task_title
from tune.report.document import Block, Section, Table, TableRow, Text, numbers, words
from tune.report.formatting import condition, listed, plain
from tune.report.run import Run

FAMILIES = {
    Family.OPENCLIP: "original OpenCLIP experts",
    Family.TALL: "OpenCLIP experts of the 20-task set",
    Family.TRANSFORMERS: "experts trained anew for FusionBench",
    Family.NOT_STATED: "experts not stated",
}
_PUBLISHED_NAMES: Mapping[str, tuple[str, ...]] = {
    "experts": ("individual",),
    "multi_task": ("traditional_mtl",),
    "weight_averaging": ("simple_average",),
    "adamerging_layer_wise": ("adamerging_layer_wise", "adamerging"),
    "adamerging_plusplus_layer_wise": ("adamerging_plusplus_layer_wise", "adamerging_plusplus"),
}
"""Names that published rows have for what is called otherwise here; the first that a family has."""
_SIMILAR: Mapping[str, tuple[str, ...]] = {
    "ensemble": ("simple_ensemble",),  # which averages embeddings, and not probabilities
    "consensus_ta": ("consensus",),  # the document does not say which of the two it is
    "consensus_ties": ("consensus",),
}
"""Published rows that are shown with ours, but never compared with them."""
_ALWAYS = ("pretrained", "individual", "doge", "doge_ta", "doge_am")


def published_beside(rows: Mapping[str, PublishedRow], method: str) -> PublishedRow | None:
    """Of a family's rows by name, the one that a row of ours is compared with, if any."""
    names = _PUBLISHED_NAMES.get(method, (method,))
    return next((rows[name] for name in names if name in rows), None)


def published_section(run: Run) -> Section | None:
    """One table per protocol and family of experts; None where no document speaks of the suite."""
    beside = run.manifest.published_suite
    if beside is None:
        return None
    own = beside == run.manifest.suite_name
    tables: list[Block] = [
        *_task_tables(run, beside, IN_DOMAIN),
        *_task_tables(run, beside, "unseen"),
        *_corruption_tables(run, beside),
    ]
    if not own:
        tables += _task_tables(run, f"{beside}_unseen_a", "unseen")
        tables += _corruption_tables(run, f"{beside}_robustness")
    if not tables:
        return None
    explanation = Text(
        text=(
            "These figures are from other documents. "
            if own
            else f"These figures are from other documents, on the suite {beside}, whose model and "
            "data sets are others. They show what the methods did there; no number of this run may "
            "be subtracted from them. "
        )
        + "Experts of several families exist, with different baselines, so each has its own "
        "tables. Rows of methods that this run does not have are left out, except for the "
        "paper's. A dagger marks what was derived and not read."
    )
    title = "Published results" if own else "Published results, on another suite"
    return Section(name="published", title=title, blocks=(explanation, *tables))


def _wanted(run: Run, row: PublishedRow) -> bool:
    names = (*run.manifest.references, *run.manifest.methods)
    ours = {
        theirs
        for name in names
        for theirs in (*_PUBLISHED_NAMES.get(name, (name,)), *_SIMILAR.get(name, ()))
    }
    return row.method in ours or row.method in _ALWAYS or row.method.startswith("adamerging")


def _task_tables(run: Run, suite: str, protocol: str) -> list[Table]:
    tables = []
    for family, label in FAMILIES.items():
        rows = [r for r in published_rows(suite, protocol, family) if _wanted(run, r)]
        if not rows:
            continue
        tasks = list(dict.fromkeys(task for row in rows for task in row.per_task or ()))
        unseen = rows[0].unseen_tasks
        tasks.sort(key=lambda task: task not in unseen)
        count = len(tasks) - len(unseen)
        what = f"{count} tasks merged, {len(unseen)} more tested" if unseen else "all tasks merged"
        header = [task_title(task) + (" (unseen)" if task in unseen else "") for task in tasks]
        tables.append(
            Table(
                name=f"published_{suite}_{protocol.replace('-', '_')}_{family.replace(' ', '_')}",
                caption=f"Published, {suite}, {label}: score (%), {what}",
                header=("Method", "Mean of unseen" if unseen else "Mean", *header),
                rows=tuple(
                    _table_row(
                        row,
                        [
                            row.unseen_average if unseen else row.average,
                            *(row.per_task.get(t) if row.per_task else None for t in tasks),
                        ],
                    )
                    for row in rows
                ),
                notes=sources(rows),
            )
        )
    return tables


def _corruption_tables(run: Run, suite: str) -> list[Table]:
    kinds = (IN_DOMAIN, *run.manifest.corruptions)
    tables = []
    for family, label in FAMILIES.items():
        by_condition = {name: published_rows(suite, name, family) for name in kinds}
        clean = [row for row in by_condition[IN_DOMAIN] if _wanted(run, row)]
        if not clean or not any(by_condition[kind] for kind in run.manifest.corruptions):
            continue
        tasks = [task_title(task) for task in clean[0].per_task or ()]
        rows = []
        for row in clean:
            averages = [
                next((found.average for found in rows if found.method == row.method), None)
                for rows in by_condition.values()
            ]
            rows.append(_table_row(row, averages))
        tables.append(
            Table(
                name=f"published_corruptions_{family}",
                caption=(
                    f"Published, {suite}, {label}: accuracy (%) under corruptions, "
                    f"mean over {', '.join(tasks)}"
                ),
                header=("Method", "Clean", *map(condition, run.manifest.corruptions)),
                rows=tuple(rows),
                notes=sources(clean),
            )
        )
    return tables


def _table_row(row: PublishedRow, values: Sequence[float | None]) -> TableRow:
    return TableRow(cells=(*words(_title(row)), *numbers([plain(value) for value in values])))


def _title(row: PublishedRow) -> str:
    return row.title + (" †" if row.confidence is Confidence.DERIVED else "")


def sources(rows: Sequence[PublishedRow]) -> tuple[str, ...]:
    """Where published rows stand, and what a reader must know besides, in sentences."""
    documents = dict.fromkeys(f"{row.document}, {row.where}".rstrip(".") for row in rows)
    about: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            about.setdefault(row.note, []).append(_title(row))
    remarks = [f"{listed(titles)}: {note}." for note, titles in about.items()]
    return (f"Sources: {'; '.join(documents)}.", *remarks)
