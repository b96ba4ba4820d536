"""What was measured of a run's merges beside their task vectors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import stats

from apgd.analysis import DeltaFigures, DeltaLayer, ExpertLayer
from apgd.analysis import delta_figures as figures_of
from tune.geometry import read_geometry
from tune.report.ranking import ranked_rows
from tune.report.run import EXPERTS, RowKey, Run


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One seed's task vectors, and the merges that were measured."""

    seed: int
    tasks: tuple[str, ...]
    """In the order of the figures."""
    experts: tuple[ExpertLayer, ...]
    """By matrix, in the order of a reader."""
    merges: Mapping[RowKey, tuple[DeltaLayer, ...]]
    """Best mean score first; the same matrices in the same order."""
    scores: Mapping[RowKey, float]
    """Mean test score of that seed."""

    def figures(self, row: RowKey) -> DeltaFigures:
        """A merge's figures over all matrices."""
        return figures_of(self.experts, self.merges[row])


def gather_geometry(run: Run, run_dir: Path) -> Geometry | None:
    """What there is of the first seed that has any; None without task vectors or merges."""
    for seed, record in run.evaluations.get(EXPERTS, {}).items():
        found = read_geometry(run_dir, record.key)
        if found is None:
            continue
        experts = sorted(found.of_experts, key=lambda layer: reading_order(layer.name))
        names = [layer.name for layer in experts]
        merges, scores = {}, {}
        for row in ranked_rows(run):
            own = run.evaluations[row].get(seed)
            merge = None if own is None else read_geometry(run_dir, own.key)
            if own is None or merge is None:
                continue
            by_name = {layer.name: layer for layer in merge.of_merge}
            merges[row] = tuple(by_name[name] for name in names)
            tasks = [own.scores[f"test/{task.name}"] for task in run.manifest.tasks]
            scores[row] = float(np.mean(tasks))
        if not merges:
            continue
        order = sorted(merges, key=lambda row: -scores[row])
        return Geometry(
            seed=seed,
            tasks=found.experts,
            experts=tuple(experts),
            merges={row: merges[row] for row in order},
            scores=scores,
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Association:
    """How a figure of the merges goes with their scores."""

    coefficient: float
    """Spearman's rank correlation."""
    p_value: float
    methods: int


def association(values: Sequence[float], scores: Sequence[float]) -> Association | None:
    """Spearman's correlation; None for fewer than four methods, or where one side is constant."""
    if len(values) < 4 or len(set(values)) < 2 or len(set(scores)) < 2:
        return None
    found = stats.spearmanr(values, scores)
    return Association(
        coefficient=float(found.statistic), p_value=float(found.pvalue), methods=len(values)
    )


def reading_order(name: str) -> list[tuple[int, str]]:
    """A key that puts block 2 before block 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the parts, between dots, that all begin or end with."""
    parts = [name.split(".") for name in names]
    for turned in (1, -1):
        while min(map(len, parts)) > 1 and all(
            one[::turned][0] == other[::turned][0] for one, other in pairwise(parts)
        ):
            parts = [one[1:] if turned == 1 else one[:-1] for one in parts]
    return [".".join(one) for one in parts]
