"""Ablations: what DOGE TA's parts, parameters, experts and seeds do to its accuracy.

Each is a list of merges to be scored and a function that says what was found; see `catalogue`.
"""

from tune.ablations.job import run_ablations
from tune.ablations.settings import AblationSettings

__all__ = ["AblationSettings", "run_ablations"]
