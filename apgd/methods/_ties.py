"""Trimming and sign election, as in Ties-Merging (Yadav et al., NeurIPS 2023, section 4)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from apgd.projective import kept
from apgd.strips import sums_by_strips
from apgd.task_vectors import TaskVectors


@dataclass(frozen=True)
class Election:
    """What matrices need to know about the whole model."""

    thresholds: Tensor
    """The magnitude from which entries of each task vector are kept, (N,)."""
    majority: Tensor
    """The sign that most entries of the whole model elect, ()."""


def election(vectors: TaskVectors, keep_ratio: float) -> Election:
    """Thresholds and majority sign; the task vectors are read three times."""
    thresholds = vectors.magnitude_thresholds(keep_ratio)
    return Election(thresholds, vectors.total(partial(_balance, thresholds)).sign())


def trimmed(
    tau: Tensor,  # (N, m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (N, m, n)
    """Task vectors whose entries below the threshold are zero."""
    return tau * kept(tau, thresholds)


def agreeing(
    trimmed: Tensor,  # (N, m, n)
    majority: Tensor,  # ()
) -> Tensor:  # (N, m, n)
    """Those entries that have the elected sign, others zero; an exact tie elects `majority`."""
    elected = trimmed.sum(dim=0).sign()
    elected = torch.where(elected == 0, majority, elected)
    return (trimmed * elected > 0) * trimmed


def _balance(thresholds: Tensor, _name: str, tau: Tensor) -> Tensor:  # ()
    """By how many entries those that elect + outnumber those that elect −."""
    thresholds = thresholds.to(tau.device)
    found = sums_by_strips(
        tau, lambda part, _rows: trimmed(part, thresholds).sum(dim=0).sign().sum()
    )
    return found.to("cpu", torch.int64)
