"""The sections about what the run did: its images, its experts, its reads and its time."""

from collections.abc import Mapping, Sequence

import numpy as np

from tune.records import Record
from tune.report.document import Block, SampleGrid, Section, Table, TableRow, Text, numbers, words
from tune.report.formatting import ABSENT, duration, number
from tune.report.run import MULTI_TASK, Run


def samples_section(*samples: SampleGrid | Table | None) -> Section | None:
    """What the tasks look like; None where no samples were given."""
    blocks = tuple(block for block in samples if block is not None)
    if not blocks:
        return None
    return Section(name="samples", title="What the tasks look like", blocks=blocks)


def experts_section(run: Run) -> Section | None:
    """Facts about the fine-tuning; None without experts."""
    if not run.experts:
        return None
    order = [task.name for task in run.manifest.tasks]
    names = sorted(
        {record.method for record in run.experts},
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    rows = []
    for name in names:
        records = [record for record in run.experts if record.method == name]
        rows.append(
            TableRow(
                cells=(
                    *words(_learned(run, name)),
                    *numbers(
                        [
                            str(len(records)),
                            _range(_detail(records, "steps")),
                            _range(_detail(records, "tau_norm_ratio")),
                            duration(float(np.mean([_seconds(record) for record in records]))),
                        ]
                    ),
                )
            )
        )
    table = Table(
        name="experts",
        caption="Experts, one per task and seed",
        header=("Task", "Experts", "Steps", "‖τ‖ / ‖θ₀‖", "Time each"),
        rows=tuple(rows),
        notes=(
            "‖τ‖ / ‖θ₀‖: length of the task vector against that of the pretrained weights; "
            "the mean over seeds, with the least and the greatest where they differ.",
        ),
    )
    return Section(name="experts", title="Experts", blocks=(table,))


def _learned(run: Run, name: str) -> str:
    """Title of what a fine-tuned model learned: its task, or all tasks."""
    if name == MULTI_TASK.method:
        return run.row_title(MULTI_TASK)
    return run.manifest.task(name).title


def _detail(records: Sequence[Record], name: str) -> list[float]:
    values = [record.details.get(name) for record in records]
    return [value for value in values if isinstance(value, int | float)]


def _seconds(record: Record) -> float:
    return sum(record.seconds.values())


def _range(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    low, high = min(values), max(values)
    if low == high:
        return number(low)
    return f"{float(np.mean(values)):.3g} ({low:.3g} to {high:.3g})"


def cost_section(run: Run) -> Section:
    """How often each split was read, and where the time went."""
    blocks: list[Block] = []
    reads = run.manifest.split_reads
    if reads:
        blocks.append(
            Table(
                name="split_reads",
                caption="How often each split was read",
                header=("Split", "Times"),
                rows=tuple(
                    TableRow(cells=(*words(split), *numbers([number(count)])))
                    for split, count in reads.items()
                ),
                notes=(
                    "Every choice is made on validation data; test data only fill the tables. "
                    "Counted: the trials of the search and the rows of the tables that read it.",
                ),
            )
        )
    if run.manifest.stages:
        blocks.append(
            Table(
                name="stages",
                caption="Stages",
                header=("Stage", "Time", "Computed", "Reused"),
                rows=tuple(
                    TableRow(
                        cells=(
                            *words(stage.name),
                            *numbers([duration(stage.seconds), *_counts(stage.done, stage.reused)]),
                        )
                    )
                    for stage in run.manifest.stages
                ),
                notes=("Reused: found on disk from an earlier start, and not computed again.",),
            )
        )
    merges = _merge_times(run)
    if merges:
        blocks.append(merges)
    if not blocks:
        blocks.append(Text(text="The run has recorded neither yet."))
    return Section(name="cost", title="Reads and time", blocks=tuple(blocks))


def _counts(*counts: int | None) -> list[str]:
    return [ABSENT if count is None else number(count) for count in counts]


def _merge_times(run: Run) -> Table | None:
    rows = []
    for row, by_seed in run.evaluations.items():
        if row.is_merge:
            times = [_mean_seconds(by_seed, step) for step in ("merge", "score")]
            cells = (*words(run.row_title(row)), *numbers([duration(time) for time in times]))
            rows.append(TableRow(cells=cells))
    if not rows:
        return None
    return Table(
        name="merge_times",
        caption="Time of one merge and of scoring it, mean over seeds",
        header=("Method", "Merge", "Score"),
        rows=tuple(rows),
    )


def _mean_seconds(by_seed: Mapping[int, Record], step: str) -> float | None:
    times = [record.seconds[step] for record in by_seed.values() if step in record.seconds]
    return float(np.mean(times)) if times else None
