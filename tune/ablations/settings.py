"""What the ablations vary and how much of it: the fields are the command line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import tyro

from apgd.errors import InputError
from apgd.methods import methods
from apgd.published import TOLERANCE
from tune.experiment import Experiment
from tune.references import EXPERTS
from tune.search.objectives import Objective

SUBJECT = "doge_ta"
"""The method whose parts are taken away."""
ABLATIONS = (
    *("components", "eta", "basis_size", "iterations", "keep_ratio", "learning_rate"),
    *("solver", "tasks", "order", "noise"),
)
"""Every ablation, in the order of the report."""
_SMOKE_BUDGET = 0.25
_SMOKE_SEEDS = 2

_Value = TypeVar("_Value", int, float)


@dataclass(frozen=True, kw_only=True)
class AblationSettings(Experiment):
    """Take DOGE TA apart: its components, its parameters, its experts, its noise."""

    name: ClassVar[str] = "ablations"
    corruptions: ClassVar[bool] = False

    only: tuple[str, ...] = ABLATIONS
    """Ablations to do, all where not given: components, eta, basis_size, iterations, keep_ratio,
    learning_rate, solver, tasks, order, noise."""
    budget: float = 1.0
    """Share of the work, in (0, 1]: of the seeds, the values of each curve, the chains of subsets,
    the orders and the searches' seeds, each rounded up. What a smaller budget has done, a larger
    one does not do again, but for `tasks`, whose chains are dealt to the seeds that there are."""
    methods: tuple[str, ...] = ("weight_averaging", "task_arithmetic", "ties", "doge_ta")
    """Methods whose accuracy is shown over the number of tasks; `apgd methods` lists them."""
    seeds: int = 3
    """Number of seeds, each with its own experts (seeds 0, 1, ...)."""
    eta: tuple[float, ...] = (0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.4)
    """Values of η; here and below the published one is added where it is missing."""
    basis_size: tuple[int, ...] = (0, 1, 4, 8, 16, 32, 64, 128)
    """Values of k, 0 for no projection; those above the rank are left out."""
    iterations: tuple[int, ...] = (0, 10, 50, 100, 200, 400, 800)
    """Numbers of Adam steps."""
    keep_ratio: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    """Shares of the entries that the masks keep."""
    learning_rate: tuple[float, ...] = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2)
    """Adam's learning rates."""
    chains: int = 9
    """Chains of nested random subsets of the tasks; each has one subset of every size."""
    orders: int = 4
    """Random orders of the experts, besides the suite's own."""
    search_seeds: int = 4
    """Searches per seed of the experts, which differ in the search's seed alone."""
    trials: int = 12
    """Trials of each of these searches, that of the published settings included."""
    at_once: int = 4
    """Trials of a search that may be under way at a time; a suggestion knows the results of all but
    the last so many before it, so that results do not depend on the number of workers."""

    # Of no use here.
    references: tyro.conf.Suppress[tuple[str, ...]] = (EXPERTS,)
    plug: tyro.conf.Suppress[str | None] = None
    objectives: tyro.conf.Suppress[tuple[Objective, ...]] = (Objective.ACCURACY,)
    compare: tyro.conf.Suppress[bool] = False
    tolerance: tyro.conf.Suppress[float] = TOLERANCE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.only:
            if name not in ABLATIONS:
                raise InputError(f"unknown ablation {name!r}; known are: {', '.join(ABLATIONS)}")
        if not self.only or len(set(self.only)) != len(self.only):
            raise InputError(
                f"only must name ablations, each once, but got {', '.join(self.only) or 'none'}"
            )
        if not 0 < self.budget <= 1:
            raise InputError(f"budget must lie in (0, 1], but got {self.budget}")
        for name, low in (("chains", 2), ("orders", 1), ("search_seeds", 2)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, but got {getattr(self, name)}")
        for name in CURVES:
            if not getattr(self, name):
                raise InputError(f"{name} must have at least one value, but got none")
            for value in getattr(self, name):
                methods[SUBJECT].parse({name: value})

    def cut(self) -> Self:
        """The same with everything that `budget` and `smoke` reduce reduced."""
        share = min(self.budget, _SMOKE_BUDGET) if self.smoke else self.budget

        def part(count: int) -> int:
            return max(1, math.ceil(share * count - 1e-9))

        published = methods[SUBJECT].parse(self.settings_of(self.full_suite, SUBJECT)).as_dict()
        curves: dict[str, Any] = {}
        for name in CURVES:
            values, first = getattr(self, name), published[name]
            kept = spread(values, part(len(values)), None if first is None else float(first))
            curves[name] = tuple(kept)
        return replace(
            self,
            seeds=min(self.seeds, _SMOKE_SEEDS) if self.smoke else part(self.seeds),
            # Of one there is no spread.
            chains=max(2, part(self.chains)),
            orders=part(self.orders),
            search_seeds=max(2, part(self.search_seeds)),
            **curves,
        )


CURVES = ("eta", "basis_size", "iterations", "keep_ratio", "learning_rate")
"""Ablations that vary one parameter, which has the ablation's name."""


def spread(values: Sequence[_Value], count: int, first: float | None = None) -> list[_Value]:
    """So many of the values, far from each other; what fewer have, more have too.

    Args:
        values: at least one.
        count: how many are wanted.
        first: the value to begin with, where it is among them; the middle one otherwise.

    Returns:
        Sorted, each once.
    """
    ranked = sorted(set(values))
    begin = ranked.index(first) if first in ranked else len(ranked) // 2  # type: ignore[arg-type]
    chosen = [begin]
    while len(chosen) < min(count, len(ranked)):
        rest = [place for place in range(len(ranked)) if place not in chosen]
        chosen.append(max(rest, key=lambda place: min(abs(place - other) for other in chosen)))
    return [ranked[place] for place in sorted(chosen)]
