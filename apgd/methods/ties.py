"""Ties-Merging: trim, elect signs, merge what agrees."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from apgd.evidence import Evidence
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    choice_parameter,
    coefficient_parameter,
    keep_ratio_parameter,
    read_once,
)
from apgd.methods._ties import Election, agreeing, election, trimmed
from apgd.projective import kept_shares
from apgd.strips import by_strips
from apgd.task_vectors import TaskVectors


def aggregate_parameter() -> Any:
    """Declare how entries that agree are put together."""
    return choice_parameter(
        "sum",
        ("sum", "mean"),
        "of entries that agree: their sum, as in most tables that have Ties (λ = 0.3), or their "
        "mean, as in its paper (λ = 1)",
    )


@dataclass(frozen=True, kw_only=True)
class TiesParams(MethodParams):
    """Parameters of Ties-Merging."""

    coefficient: float = coefficient_parameter(0.3, "the merged task vector", (0.05, 5.0))
    keep_ratio: float = keep_ratio_parameter(0.2)
    aggregate: str = aggregate_parameter()


def disjoint_merge(
    trimmed: Tensor,  # (N, m, n)
    majority: Tensor,  # ()
    aggregate: str,
) -> Tensor:  # (m, n)
    """Sum or mean of the entries that have the elected sign; an exact tie elects `majority`."""
    found = agreeing(trimmed, majority)
    if aggregate == "sum":
        return found.sum(dim=0)
    return found.sum(dim=0) / (found != 0).sum(dim=0).clamp(min=1)


def _prepare(vectors: TaskVectors, params: TiesParams, _evidence: Evidence) -> Election:
    return election(vectors, params.keep_ratio)


def _combine(tau: Tensor, params: TiesParams, prepared: Election) -> Combined:
    thresholds = prepared.thresholds.to(tau.device)
    majority = prepared.majority.to(tau)

    def of(part: Tensor, _rows: slice) -> Tensor:
        return params.coefficient * disjoint_merge(
            trimmed(part, thresholds), majority, params.aggregate
        )

    shares = kept_shares(tau, thresholds)
    return Combined(by_strips(tau, of), {"kept": shares.tolist()})


ties = Method(
    name="ties",
    title="Ties-Merging",
    source="Yadav et al., NeurIPS 2023 (arXiv 2306.01708), section 4",
    params=TiesParams,
    combine=_combine,
    prepare=_prepare,
    passes=4,  # two for the thresholds, one for the majority sign
    cost=lambda shape, experts, params: read_once(shape, experts, params) * 4,
)
