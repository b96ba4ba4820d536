"""Settings of methods that several suites share, where they are not the methods' defaults."""

from collections.abc import Mapping
from types import MappingProxyType

from apgd.methods import Value

Settings = Mapping[str, Mapping[str, Value]]
"""By method, values of its parameters."""

LANGUAGE: Settings = MappingProxyType(
    {
        "doge_ta": {"eta": 0.15},
        "doge_am": {"eta": 0.15},
        "regmean": {"off_diagonal": 0.1},
    }
)
"""What the papers use for language models, where they have other settings for vision."""

_FEW_STEPS = {"iterations": 30, "learning_rate": 1e-2}
SHORT_ADAPTATION: Settings = MappingProxyType(
    {
        "adamerging_task_wise": _FEW_STEPS,
        "adamerging_layer_wise": _FEW_STEPS,
        "adamerging_plusplus_task_wise": _FEW_STEPS,
        "adamerging_plusplus_layer_wise": _FEW_STEPS,
        "doge_am": {f"adaptation_{name}": value for name, value in _FEW_STEPS.items()},
    }
)
"""For embedded suites: fewer and larger steps than the published 500 of 1e-3, which would take
minutes for every merge on a laptop; a report says so."""
