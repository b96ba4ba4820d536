"""Consensus merging: what fewer than k tasks have a use for is left out of the multi-task vector.

Source: Wang et al., ICML 2024 (arXiv 2405.07813). The TALL mask of task i selects the entries with
|τ_i| ≥ λ_t |τ_MTL − τ_i|, where τ_MTL is the unscaled multi-task vector: Σ_i τ_i for task
arithmetic; for Ties-Merging the sum, not the mean, of the trimmed entries that have the elected
sign, as in the authors' code. The merge is λ τ_MTL on the entries that at least k tasks select. The
authors choose λ_t for each task by validation, here it is the same for all.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from apgd.evidence import Evidence
from apgd.methods._method import (
    Combined,
    Limit,
    Method,
    MethodParams,
    coefficient_parameter,
    keep_ratio_parameter,
    parameter,
    read_once,
)
from apgd.methods._ties import Election, agreeing, election, trimmed
from apgd.strips import by_strips
from apgd.task_vectors import TaskVectors

_AGREEMENT = 2


@dataclass(frozen=True, kw_only=True)
class ConsensusTaParams(MethodParams):
    """Parameters of Consensus Task Arithmetic."""

    coefficient: float = coefficient_parameter(0.3, "the multi-task vector", (0.05, 2.0))
    tall_lambda: float = parameter(
        0.4,
        "λ_t of the TALL masks: the larger, the fewer entries a task selects (the authors try 0.2 "
        "to 0.6)",
        low=0,
        search=(0.2, 0.6),
    )
    agreement: int | None = parameter(
        None,
        "k, how many tasks must select an entry for it to be merged; 2, or 1 of a single expert",
        low=0,
        high=Limit.EXPERTS,
    )

    def resolved(self, rank: int, experts: int) -> Self:  # noqa: ARG002 - as declared
        """The same parameters with k filled in where it was not given."""
        return dataclasses.replace(self, agreement=self.agreement_of(experts))

    def agreement_of(self, experts: int) -> int:
        """Its k for this number of experts."""
        return min(_AGREEMENT, experts) if self.agreement is None else self.agreement


@dataclass(frozen=True, kw_only=True)
class ConsensusTiesParams(ConsensusTaParams):
    """Parameters of Consensus Ties."""

    keep_ratio: float = keep_ratio_parameter(0.2)


def tall_masks(
    tau: Tensor,  # (N, m, n)
    multi_task: Tensor,  # (m, n)
    tall_lambda: float,
) -> Tensor:  # (N, m, n), bool
    """The entries that matter to each task: |τ_i| ≥ λ_t |τ_MTL − τ_i|."""
    return tau.abs() >= tall_lambda * (multi_task - tau).abs()


def _merged(
    tau: Tensor,  # (N, m, n)
    params: ConsensusTaParams,
    multi_task_of: Callable[[Tensor], Tensor],  # (N, rows, n) -> (rows, n)
) -> Combined:
    agreement = params.agreement_of(len(tau))
    agreed = torch.zeros(tau.shape[1:], dtype=torch.bool, device=tau.device)

    def of(part: Tensor, rows: slice) -> Tensor:
        multi_task = multi_task_of(part)
        votes = tall_masks(part, multi_task, params.tall_lambda).sum(dim=0)
        agreed[rows] = votes >= agreement
        return params.coefficient * (multi_task * agreed[rows])

    delta = by_strips(tau, of)
    return Combined(delta, {"agreed": int(agreed.sum()) / agreed.numel()})


def _combine_ta(tau: Tensor, params: ConsensusTaParams, _prepared: None) -> Combined:
    return _merged(tau, params, lambda part: part.sum(dim=0))


def _prepare_ties(vectors: TaskVectors, params: ConsensusTiesParams, _known: Evidence) -> Election:
    return election(vectors, params.keep_ratio)


def _combine_ties(tau: Tensor, params: ConsensusTiesParams, found: Election) -> Combined:
    thresholds, majority = found.thresholds.to(tau.device), found.majority.to(tau)
    return _merged(
        tau, params, lambda part: agreeing(trimmed(part, thresholds), majority).sum(dim=0)
    )


_SOURCE = "Wang et al., ICML 2024 (arXiv 2405.07813), section 4"

consensus_ta = Method(
    name="consensus_ta",
    title="Consensus Task Arithmetic",
    source=_SOURCE,
    params=ConsensusTaParams,
    combine=_combine_ta,
    cost=lambda shape, experts, params: read_once(shape, experts, params) * 2,
)

consensus_ties = Method(
    name="consensus_ties",
    title="Consensus Ties",
    source=_SOURCE,
    params=ConsensusTiesParams,
    combine=_combine_ties,
    prepare=_prepare_ties,
    passes=4,  # as of Ties-Merging
    cost=lambda shape, experts, params: read_once(shape, experts, params) * 5,
)
