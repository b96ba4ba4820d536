"""What a merge did, layer by layer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Detail: TypeAlias = float | int | list[float]
"""One figure, or one for each expert."""


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """What a merge did to one matrix."""

    name: str
    shape: tuple[int, int]
    task_norms: tuple[float, ...]
    """‖τ_i‖_F of every expert, as the method works on it: after what is done to it first."""
    delta_norm: float
    """‖θ − θ_0‖_F."""
    seconds: float
    """Time spent on it, without reading it."""
    details: dict[str, Detail]
    """What its method tells. DOGE TA: `coefficients` λ_i, `subspace_size` k, `loss_before` and
    `loss_after` (the gap loss of Δ = 0 and of Δ), `kept` (the share of entries kept of each task
    vector). Ties-Merging and Model Breadcrumbs: `kept`. Consensus merging: `agreed` (the share of
    entries that enough tasks select)."""


@dataclass(frozen=True, kw_only=True)
class MergeSummary:
    """What a merge did."""

    method: str
    params: dict[str, float | int | str | None]
    experts: tuple[str, ...]
    layers: tuple[LayerSummary, ...]
    """Sorted by name."""
    not_merged: tuple[str, ...]
    """Parameters that are the base's, unchanged."""
    tied: dict[str, str]
    """Parameters that are another one under a second name, and that one."""
    seconds: float
    """From reading the first value to having the last result."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the method was given besides weights: hashes of files, or of inputs and what they are
    of."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MergeSummary":
        """What `as_dict` gave."""
        layers = tuple(layer_from_dict(layer) for layer in values["layers"])
        lists = {name: tuple(values[name]) for name in ("experts", "not_merged")}
        return cls(**{**values, **lists, "layers": layers})


def layer_from_dict(values: Mapping[str, Any]) -> LayerSummary:
    """A layer's summary from JSON values."""
    rows, columns = values["shape"]
    norms = tuple(values["task_norms"])
    return LayerSummary(**{**values, "shape": (rows, columns), "task_norms": norms})
