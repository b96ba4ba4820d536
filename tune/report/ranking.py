"""Merge methods ranked against each other, over tasks and seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apgd import ranking
from apgd.evidence import Need
from apgd.ranking import Friedman
from apgd.statistics import Interval, accuracy, difference
from tune.records import Variant
from tune.report.measures import Column, results
from tune.report.run import RowKey, Run


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Methods, each by its tuned row where it has one, on the tasks and seeds that all have."""

    rows: tuple[RowKey, ...]
    """Best average rank first."""
    left_out: tuple[RowKey, ...]
    """Rows that lack a seed or a task which others have."""
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: np.ndarray
    """(seeds, tasks, methods), at most 1."""
    means: Mapping[RowKey, Interval]
    """Mean test score over the tasks."""
    best_free: RowKey | None
    """The row with the best mean among those of data-free methods."""
    gaps: Mapping[RowKey, Interval]
    """By row, its mean minus that of `best_free`, paired by example and seed."""

    @property
    def cells(self) -> np.ndarray:
        """Scores (seeds x tasks, methods)."""
        return self.scores.reshape(-1, len(self.rows))

    @cached_property
    def ranks(self) -> np.ndarray:
        """(seeds, tasks, methods), 1 for the best."""
        return ranking.ranks(self.cells).reshape(self.scores.shape)

    @property
    def average_ranks(self) -> tuple[float, ...]:
        """By row."""
        return tuple(self.ranks.mean(axis=(0, 1)).tolist())

    @property
    def over_cells(self) -> Friedman:
        """Friedman's test on every task and seed."""
        return ranking.friedman(self.cells)

    @property
    def over_tasks(self) -> Friedman:
        """Friedman's test on every task, its score averaged over seeds."""
        return ranking.friedman(self.scores.mean(axis=0))

    @property
    def distance(self) -> float:
        """Critical distance where every task and seed counts as a sample."""
        return ranking.critical_distance(len(self.rows), len(self.cells))

    @property
    def distance_of_tasks(self) -> float:
        """Critical distance where every task counts as one sample."""
        return ranking.critical_distance(len(self.rows), len(self.tasks))

    @property
    def least_p(self) -> float:
        """The smallest of `p_values` that so many cells and pairs allow, at most 1."""
        return min(1.0, math.comb(len(self.rows), 2) * 2.0 ** (1 - len(self.cells)))

    @cached_property
    def groups(self) -> tuple[tuple[RowKey, ...], ...]:
        """The largest sets of rows within `distance` of each other, two or more in each."""
        found = ranking.groups(self.average_ranks, self.distance)
        return tuple(tuple(self.rows[i] for i in members) for members in found if len(members) > 1)

    def letters(self, row: RowKey) -> str:
        """The groups that a row is in, as letters."""
        return " ".join(letter(n) for n, members in enumerate(self.groups) if row in members)

    @cached_property
    def p_values(self) -> Mapping[frozenset[RowKey], float]:
        """Signed-rank tests of all pairs on every task and seed, with Holm's correction."""
        found = ranking.signed_rank_p_values(self.cells)
        return {frozenset((self.rows[i], self.rows[j])): p for (i, j), p in found.items()}


def letter(number: int) -> str:
    """`a` for 0, `z` for 25, `a2` for 26."""
    turn, place = divmod(number, 26)
    return chr(ord("a") + place) + (str(turn + 1) if turn else "")


def ranked_rows(run: Run) -> tuple[RowKey, ...]:
    """One row per merge method: the tuned one, or where there is none the published."""
    chosen = {}
    for row in run.rows:
        if row.is_merge and (row.variant is Variant.TUNED or row.method not in chosen):
            chosen[row.method] = row
    return tuple(chosen.values())


def rank_methods(run: Run) -> Ranking | None:
    """Rank the methods of a run; None where there are fewer than two to rank."""
    wanted = ranked_rows(run)
    tasks = tuple(task.name for task in run.manifest.tasks)
    column = Column(title="Mean", cells={name: (f"test/{name}",) for name in tasks})
    seeds = tuple(sorted({seed for row in wanted for seed in run.seeds(row)}))
    found = {
        row: values
        for row in wanted
        if run.seeds(row) == seeds and (values := results(run, row, seeds, column)) is not None
    }
    if len(found) < 2 or not tasks:
        return None
    table = {
        row: np.array([[run_of_seed[task].mean() for task in tasks] for run_of_seed in values])
        for row, values in found.items()
    }
    means = {row: accuracy(values) for row, values in found.items()}
    free = [row for row in found if run.need(row.method) is Need.NOTHING]
    best = max(free, key=lambda row: means[row].estimate, default=None)
    flat = np.stack([values.reshape(-1) for values in table.values()], axis=1)
    average = dict(zip(found, ranking.ranks(flat).mean(axis=0), strict=True))
    rows = tuple(sorted(found, key=lambda row: (average[row], -means[row].estimate)))
    return Ranking(
        rows=rows,
        left_out=tuple(row for row in wanted if row not in found),
        tasks=tasks,
        seeds=seeds,
        scores=np.stack([table[row] for row in rows], axis=2),
        means=means,
        best_free=best,
        gaps={
            row: difference(values, found[best])
            for row, values in found.items()
            if best is not None and row != best
        },
    )
