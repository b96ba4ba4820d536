"""Every merge method on the same experts, with equal budgets: which are better than which.

uv run experiments/compare_methods.py                                        all methods
uv run experiments/compare_methods.py --methods ties tsv_m --budget 4        some, quickly

The same job as full_repro's, without corrupted images. What the report then says about all pairs of
methods is in its sections on ranks and on geometry. A run that was stopped goes on from where it
was, and more methods or seeds extend it.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import tyro

from apgd.methods import methods as registered
from tune.command import run_command
from tune.experiment import Experiment
from tune.job import run_experiment
from tune.references import REFERENCES

_ORDER = (
    *("weight_averaging", "task_arithmetic"),
    *("ties", "dare_average", "dare_task_arithmetic", "dare_ties", "breadcrumbs", "pcb"),
    *("consensus_ta", "consensus_ties"),
    *("tsv_m", "iso_c", "iso_cts", "wudi"),
    *("doge_ta",),
    *("fisher", "regmean"),
    *("adamerging_task_wise", "adamerging_layer_wise"),
    *("adamerging_plusplus_task_wise", "adamerging_plusplus_layer_wise", "doge_am"),
)
"""Averages, then what trims entries, singular values, training data and test inputs."""
_PLUGGED = ("weight_averaging", "ties", "tsv_m")


def every_method() -> tuple[str, ...]:
    """All registered methods by kind, others after them; then some with APGD before them."""
    known = [name for name in _ORDER if name in registered]
    others = sorted(set(registered) - set(_ORDER))
    return (*known, *others, *(f"{name}+apgd" for name in _PLUGGED if name in registered))


@dataclass(frozen=True, kw_only=True)
class MethodComparison(Experiment):
    """Merge the same experts by every method, search each with the same budget, rank them."""

    name: ClassVar[str] = "compare_methods"
    published_rows: ClassVar[bool] = False
    corruptions: ClassVar[bool] = False
    geometry: ClassVar[bool] = True

    methods: tuple[str, ...] = field(default_factory=every_method)
    """Merge methods to compare, all where not given; `apgd methods` lists them."""
    references: tuple[str, ...] = tuple(REFERENCES)
    """Rows to compare with: pretrained, experts, multi_task (one model fine-tuned here on all tasks
    together), ensemble (the experts' probabilities averaged)."""
    seeds: int = 3
    """Number of seeds, each with its own experts and its own searches (seeds 0, 1, ...)."""
    trials: Annotated[int, tyro.conf.arg(aliases=["--budget"])] = 6
    """Merges scored by the search of each method and seed, the published settings included."""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        MethodComparison, run_experiment, prog="experiments/compare_methods.py", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
