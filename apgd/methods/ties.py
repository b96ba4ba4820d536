"""Ties-Merging: trim, elect signs, merge what agrees."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from apgd.evidence import Evidence
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    keep_ratio_parameter,
    parameter,
    read_once,
)
from apgd.projective import kept, kept_shares
from apgd.strips import by_strips, sums_by_strips
from apgd.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class TiesParams(MethodParams):
    """Parameters of Ties-Merging."""

    coefficient: float = parameter(
        0.3, "merging coefficient λ of the merged task vector", low=0, search=(0.05, 5.0), log=True
    )
    keep_ratio: float = keep_ratio_parameter(0.2)


@dataclass(frozen=True)
class _Prepared:
    thresholds: Tensor
    """The magnitude from which entries of each task vector are kept, (N,)."""
    majority: Tensor
    """The sign that most entries of the whole model elect, ()."""


def _trimmed(
    tau: Tensor,  # (N, m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (N, m, n)
    return tau * kept(tau, thresholds)


def disjoint_merge(
    trimmed: Tensor,  # (N, m, n)
    majority: Tensor,  # ()
) -> Tensor:  # (m, n)
    """Mean of the entries that have the elected sign; the majority sign breaks an exact tie."""
    elected = trimmed.sum(dim=0).sign()
    elected = torch.where(elected == 0, majority, elected)
    agreeing = (trimmed * elected > 0) * trimmed
    counts = (agreeing != 0).sum(dim=0).clamp(min=1)
    return agreeing.sum(dim=0) / counts


def _prepare(vectors: TaskVectors, params: TiesParams, _evidence: Evidence) -> _Prepared:
    thresholds = vectors.magnitude_thresholds(params.keep_ratio)
    balance = vectors.total(partial(_balance, thresholds))
    return _Prepared(thresholds, balance.sign())


def _balance(thresholds: Tensor, _name: str, tau: Tensor) -> Tensor:  # ()
    """By how many entries those that elect + outnumber those that elect −."""
    thresholds = thresholds.to(tau.device)
    found = sums_by_strips(
        tau, lambda part, _rows: _trimmed(part, thresholds).sum(dim=0).sign().sum()
    )
    return found.to("cpu", torch.int64)


def _combine(tau: Tensor, params: TiesParams, prepared: _Prepared) -> Combined:
    thresholds = prepared.thresholds.to(tau.device)
    majority = prepared.majority.to(tau)

    def of(part: Tensor, _rows: slice) -> Tensor:
        return params.coefficient * disjoint_merge(_trimmed(part, thresholds), majority)

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
