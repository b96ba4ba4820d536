"""Merges by name and what they answered: ablations say what they want scored, and read it here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from apgd.methods import Value, methods
from apgd.suites import Suite
from tune.ablations.settings import SUBJECT, AblationSettings
from tune.evaluators import Purpose, ScoreJob, Workload
from tune.records import Record, RecordStore, Variant
from tune.references import EXPERTS

Answers: TypeAlias = Mapping[str, np.ndarray]
"""Tasks to arrays (examples,), of booleans for right and wrong or of numbers."""


@dataclass(frozen=True)
class Merge:
    """A merge, or the reference row of the experts, without its seed."""

    purpose: Purpose
    method: str
    variant: Variant
    params: tuple[tuple[str, Value], ...] = ()
    tasks: tuple[str, ...] = ()
    """What is merged and scored, in this order; every task of the suite where there are none."""

    def job(self, seed: int) -> ScoreJob:
        """The merge of one seed's experts."""
        return ScoreJob(
            self.purpose, self.method, self.variant, seed, self.params, tasks=self.tasks
        )

    @property
    def settings(self) -> dict[str, Value]:
        """Its parameters by name."""
        return dict(self.params)


Wanted: TypeAlias = tuple[Merge, int]
"""A merge and the seed of its experts."""
Scorer: TypeAlias = Callable[[str, Sequence[ScoreJob]], None]
"""Brings the records of the jobs into being, as a stage of that name; done ones are left alone."""
Cell: TypeAlias = tuple[int, int]
"""Seed of the experts and seed of a search."""
Searcher: TypeAlias = Callable[[Sequence[Cell]], Mapping[Cell, Mapping[str, Value]]]
"""Searches the subject's parameters on validation data; the best ones by cell."""


class Bench:
    """What ablations work with.

    Args:
        settings: what is varied, already cut down.
        suite: what is merged and tested.
        rank: the smallest min(m, n) over the merged matrices.
        workload: what all scores have in common.
        store: where records are.
        scorer: makes records.
        searcher: searches parameters.
    """

    def __init__(
        self,
        settings: AblationSettings,
        suite: Suite,
        rank: int,
        workload: Workload,
        store: RecordStore,
        scorer: Scorer,
        searcher: Searcher,
    ) -> None:
        self.settings = settings
        self.suite = suite
        self.rank = rank
        self.tasks = tuple(task.name for task in suite.tasks)
        self.seeds = tuple(range(settings.seeds))
        self._workload = workload
        self._store = store
        self._scorer = scorer
        self.search = searcher

    def published(self, method: str = SUBJECT, experts: int | None = None) -> dict[str, Value]:
        """The suite's settings of a method, with everything filled in that follows from the model.

        Args:
            method: whose.
            experts: how many are merged; all where None.
        """
        settings = methods[method].parse(self.settings.settings_of(self.suite, method))
        return settings.resolved(self.rank, experts or len(self.tasks)).as_dict()

    def merge(
        self,
        purpose: Purpose,
        changes: Mapping[str, Value] | None = None,
        *,
        method: str = SUBJECT,
        tasks: Sequence[str] | None = None,
    ) -> Merge:
        """A merge with published settings but for the changes.

        Parameters that have no effect are set to what they are without Δ or without η, so that
        merges that are the same are equal.

        Args:
            purpose: validation or test.
            changes: parameters with other values than the published ones.
            method: how is merged.
            tasks: whose experts are merged, in this order; all where None.
        """
        # Unseen tasks, which a test without tasks has too, are not looked at.
        merged = tuple(tasks or (self.tasks if purpose is Purpose.FINAL else ()))
        published = self.published(method, len(merged) or None)
        values = {**published, **(changes or {})}
        if values.get("iterations") == 0 and "basis_size" in values:
            values |= {name: published[name] for name in ("learning_rate", "solver", "tolerance")}
            values |= {"basis_size": 0, "shared_basis_size": None}
        if values.get("uniform_coefficient") is not None:
            values["eta"] = published["eta"]
        if values.get("solver") == "adam":
            values["tolerance"] = published["tolerance"]
        parsed = methods[method].parse(values).as_dict()
        variant = Variant.PUBLISHED if parsed == published else Variant.VARIED
        return Merge(purpose, method, variant, tuple(parsed.items()), merged)

    @property
    def experts(self) -> Merge:
        """Each task's own expert, on test data."""
        return Merge(Purpose.FINAL, EXPERTS, Variant.REFERENCE)

    def each_seed(self, merges: Sequence[Merge]) -> list[Wanted]:
        """The merges at every seed, seed by seed."""
        return [(merge, seed) for seed in self.seeds for merge in merges]

    def score(self, stage: str, wanted: Sequence[Wanted]) -> None:
        """See to it that there are records; each that is missing is made once."""
        self._scorer(stage, list(dict.fromkeys(merge.job(seed) for merge, seed in wanted)))

    def record(self, merge: Merge, seed: int) -> Record:
        """What came of a merge that was scored.

        Raises:
            FileNotFoundError: where it was not.
        """
        key = merge.job(seed).key(self._workload)
        record = self._store.get(merge.purpose.kind, key)
        if record is None:
            raise FileNotFoundError(f"the record of {merge.purpose.kind} {key} does not exist")
        return record

    def answers(self, merge: Merge, seed: int) -> dict[str, np.ndarray]:
        """The answers of a scored merge, by task."""
        found = self._store.answers(self.record(merge, seed))
        split = merge.purpose.reads
        return {task: found[f"{split}/{task}"] for task in merge.tasks or self.tasks}

    def runs(self, merge: Merge, seeds: Sequence[int] | None = None) -> list[dict[str, np.ndarray]]:
        """The answers seed by seed, of all seeds where none are named."""
        return [self.answers(merge, seed) for seed in (self.seeds if seeds is None else seeds)]

    def merge_seconds(self, merge: Merge) -> float:
        """Mean time of the merge over seeds, as it was first done."""
        return float(np.mean([self.record(merge, s).seconds["merge"] for s in self.seeds]))
