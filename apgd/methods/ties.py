"""Ties-Merging: trim, elect signs, merge what agrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.methods._method import Method, MethodParams, keep_ratio_parameter, parameter
from apgd.task_vectors import Delta, TaskVectors


@dataclass(frozen=True, kw_only=True)
class TiesParams(MethodParams):
    """Parameters of Ties-Merging."""

    coefficient: float = parameter(
        0.3, "merging coefficient λ of the merged task vector", low=0, search=(0.05, 5.0), log=True
    )
    keep_ratio: float = keep_ratio_parameter(0.2)


def _trimmed(
    tau: Tensor,  # (N, m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (N, m, n)
    return tau * (tau.abs() >= thresholds.view(-1, 1, 1))


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


def _sum(vectors: TaskVectors, params: TiesParams) -> Delta:
    thresholds = vectors.magnitude_thresholds(params.keep_ratio)
    balance = sum(_trimmed(tau, thresholds).sum(dim=0).sign().sum() for _, tau in vectors)
    majority = torch.as_tensor(balance, device=vectors.device).sign()
    return {
        name: params.coefficient * disjoint_merge(_trimmed(tau, thresholds), majority)
        for name, tau in vectors
    }


ties = Method(
    name="ties",
    title="Ties-Merging",
    source="Yadav et al., NeurIPS 2023 (arXiv 2306.01708), section 4",
    params=TiesParams,
    combine=_sum,
)
