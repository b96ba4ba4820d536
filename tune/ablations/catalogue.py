"""All ablations by name."""

from collections.abc import Mapping
from types import MappingProxyType

from tune.ablations import components, noise, order, parameter_curves, solver, task_counts
from tune.ablations.finding import Ablation
from tune.ablations.settings import ABLATIONS, CURVES

_OTHERS = {
    "components": components.ABLATION,
    "solver": solver.ABLATION,
    "tasks": task_counts.ABLATION,
    "order": order.ABLATION,
    "noise": noise.ABLATION,
}

CATALOGUE: Mapping[str, Ablation] = MappingProxyType(
    {
        name: parameter_curves.ablation(name) if name in CURVES else _OTHERS[name]
        for name in ABLATIONS
    }
)
"""In the order of the report."""
