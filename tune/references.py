"""Rows of the tables that are no merges, but what merges are measured against."""

from collections.abc import Mapping
from types import MappingProxyType

from apgd.mixture import MULTI_TASK

__all__ = ["ENSEMBLE", "EXPERTS", "MULTI_TASK", "PRETRAINED", "REFERENCES"]

PRETRAINED = "pretrained"
"""The base model."""
EXPERTS = "experts"
"""Each task's own expert."""
ENSEMBLE = "ensemble"
"""All experts on every task, their probabilities averaged: a forward pass through each."""

REFERENCES: Mapping[str, str] = MappingProxyType(
    {
        PRETRAINED: "Zero-shot (pretrained)",
        EXPERTS: "Single experts",
        MULTI_TASK: "Multi-task training",
        ENSEMBLE: "Ensemble of experts",
    }
)
"""Their titles, in the order of the tables."""
