"""The records of a run, sorted into the rows of its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from apgd.evidence import Need
from tune import references
from tune.records import Kind, Record, RecordStore, Variant
from tune.report.axis import Axis
from tune.report.manifest import Manifest, read_manifest
from tune.report.trials import Place, best_trials, in_order

_NO_NEEDS: Mapping[str, Need] = MappingProxyType({})


class RowKey(NamedTuple):
    """What one row of a table is about."""

    method: str
    variant: Variant

    @property
    def is_merge(self) -> bool:
        """Whether this is a merge, and not a reference."""
        return self.variant is not Variant.REFERENCE


PRETRAINED = RowKey(references.PRETRAINED, Variant.REFERENCE)
EXPERTS = RowKey(references.EXPERTS, Variant.REFERENCE)
MULTI_TASK = RowKey(references.MULTI_TASK, Variant.REFERENCE)
ENSEMBLE = RowKey(references.ENSEMBLE, Variant.REFERENCE)
REFERENCE_TITLES = {
    RowKey(name, Variant.REFERENCE): title for name, title in references.REFERENCES.items()
}

Answers = Mapping[str, np.ndarray]
"""Cells to arrays (examples,), of booleans for right and wrong or of numbers."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read."""

    manifest: Manifest
    evaluations: Mapping[RowKey, Mapping[int, Record]]
    """Rows in the order of the tables, each with its record by seed."""
    answers: Mapping[RowKey, Mapping[int, Answers]]
    """The same rows with their results per example; the pretrained row has them for every seed."""
    trials: tuple[Record, ...]
    experts: tuple[Record, ...]
    titles: Mapping[str, str]
    axes: Mapping[str, Sequence[Axis]]
    remarks: tuple[str, ...]
    """What was unclear while reading, in sentences."""
    needs: Mapping[str, Need]
    """What methods need besides base and experts; nothing, where not named."""

    @cached_property
    def rows(self) -> tuple[RowKey, ...]:
        """The rows that exist, in the order of the tables."""
        return tuple(self.answers)

    def method_title(self, method: str) -> str:
        """A method's name for people; an unknown one is its own title."""
        return self.titles.get(method, method)

    def need(self, method: str) -> Need:
        """What a method needs besides base and experts."""
        return self.needs.get(method, Need.NOTHING)

    def row_title(self, row: RowKey) -> str:
        """A row's name for people, without seeds."""
        if row in REFERENCE_TITLES:
            return REFERENCE_TITLES[row]
        return f"{self.method_title(row.method)} ({row.variant})"

    def seeds(self, *rows: RowKey) -> tuple[int, ...]:
        """The seeds that all these rows have."""
        shared = set.intersection(*(set(self.answers.get(row, {})) for row in rows))
        return tuple(sorted(shared))


def read_run(
    run_dir: Path,
    *,
    titles: Mapping[str, str],
    axes: Mapping[str, Sequence[Axis]],
    needs: Mapping[str, Need] = _NO_NEEDS,
) -> Run:
    """Read a run folder; what does not exist yet is simply absent.

    Raises:
        InputError: when the manifest or a record cannot be read.
    """
    manifest = read_manifest(run_dir)
    store = RecordStore(run_dir)

    def of_this_run(kind: Kind) -> list[Record]:
        """A folder may also hold records of other starts: more seeds, other code or versions."""
        named = None if manifest.records is None else manifest.records.get(kind, ())
        found = [
            record
            for record in store.all(kind)
            if record.seed in range(manifest.seeds) and (named is None or record.key in named)
        ]
        return sorted(found, key=lambda record: int(record.details.get("number", 0)))

    trials = [in_order(trial, manifest.objectives) for trial in of_this_run(Kind.TRIAL)]
    remarks: list[str] = []
    chosen = _one_per_row(store, of_this_run(Kind.EVALUATION), trials, remarks)
    order = list(REFERENCE_TITLES)
    methods = dict.fromkeys([*manifest.methods, *sorted(row.method for row in chosen)])
    variants = (Variant.PUBLISHED, Variant.TUNED)
    order += [RowKey(method, variant) for method in methods for variant in variants]
    evaluations = {row: dict(sorted(chosen[row].items())) for row in order if row in chosen}
    answers = {row: _read_answers(store, evaluations[row], remarks) for row in evaluations}
    if answers.get(PRETRAINED):
        # No seed enters the pretrained model, so its one result is that of every seed.
        only = next(iter(answers[PRETRAINED].values()))
        answers[PRETRAINED] = dict.fromkeys(range(manifest.seeds), only)
    return Run(
        manifest=manifest,
        evaluations=evaluations,
        answers={row: by_seed for row, by_seed in answers.items() if by_seed},
        trials=tuple(trials),
        experts=tuple(of_this_run(Kind.EXPERT)),
        titles=titles,
        axes=axes,
        remarks=tuple(remarks),
        needs=needs,
    )


def _read_answers(
    store: RecordStore, by_seed: Mapping[int, Record], remarks: list[str]
) -> dict[int, Answers]:
    answers: dict[int, Answers] = {}
    for seed, record in by_seed.items():
        try:
            answers[seed] = store.answers(record)
        except FileNotFoundError:
            remarks.append(
                f"{record.method} ({record.variant}), seed {seed}: left out, because its results "
                "per example are missing."
            )
    return answers


def _one_per_row(
    store: RecordStore,
    evaluations: Sequence[Record],
    trials: Sequence[Record],
    remarks: list[str],
) -> dict[RowKey, dict[int, Record]]:
    """One evaluation per row and seed.

    A folder holds several when a run was repeated with other settings, or when more trials found a
    better winner. For a tuned row the record with the winner's parameters counts; what remains is
    decided by the time of writing, and said.
    """
    found: dict[tuple[RowKey, int], list[Record]] = {}
    for record in evaluations:
        place = (RowKey(record.method, record.variant), record.seed)
        found.setdefault(place, []).append(record)
    best = best_trials(trials)
    chosen: dict[RowKey, dict[int, Record]] = {}
    for (row, seed), records in found.items():
        winner = best.get(Place(row.method, seed))
        if row.variant is Variant.TUNED and winner is not None:
            records = [r for r in records if dict(r.params) == dict(winner.params)] or records
        if len(records) > 1:
            remarks.append(
                f"{row.method} ({row.variant}), seed {seed}: {len(records)} records exist; "
                "the one written last is shown."
            )
        chosen.setdefault(row, {})[seed] = max(records, key=lambda r: _written(store, r))
    return chosen


def _written(store: RecordStore, record: Record) -> int:
    return (store.root / record.kind / f"{record.key}.json").stat().st_mtime_ns
