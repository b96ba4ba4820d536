"""PCB-Merging: entries compete within their task vector and between task vectors.

Source: Du et al., NeurIPS 2024 (arXiv 2410.02396), as their code computes it (pcb-merging.py of
their repository). Minima, maxima and ranks are over all d merged entries of the model, separately
for each of the N experts.

1. a_i = |τ_i|, clamped to all but its 10⁻⁴ smallest and largest: [a_low, a_high].
2. Intra-balancing: exp(N x²), x = (a_i − a_low) / (a_high − a_low).
3. Inter-balancing: tanh(τ_i ⊙ Σ_j τ_j).
4. β_i, the product of both; the scores below the one at rank 1 + ⌊(1 − keep_ratio) d⌋ are dropped,
   and those from it to the largest rescaled to [0, 1]: w_i.
5. θ − θ_0 = λ Σ_i w_i a_i sign(τ_i) / Σ_i w_i.

The paper writes softmax where this has exp and tanh. As rescaling does not see a common factor, exp
is taken of N (x² − 1), which is never too large.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from apgd.evidence import Evidence
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    coefficient_parameter,
    parameter,
    read_once,
)
from apgd.order_statistics import Rows, order_statistics
from apgd.strips import by_strips
from apgd.task_vectors import TaskVectors

_OUTLIERS = 1e-4
_LEAST_WEIGHT = 1e-12


@dataclass(frozen=True, kw_only=True)
class PcbParams(MethodParams):
    """Parameters of PCB-Merging."""

    coefficient: float = coefficient_parameter(1.2, "the merged task vector", (0.2, 5.0))
    keep_ratio: float = parameter(
        0.05,
        "share r of each task vector's entries that is kept, highest scores first",
        low=0,
        high=1,
        open_low=True,
        search=(0.02, 0.5),
    )


@dataclass(frozen=True)
class Bounds:
    """What the scores of a model's entries are between, for each expert."""

    magnitudes: Tensor
    """a_low and a_high, (N, 2)."""
    scores: Tensor
    """The score from which entries are kept, and the largest, (N, 2)."""


def _prepare(vectors: TaskVectors, params: PcbParams, _evidence: Evidence) -> Bounds:
    count, experts = vectors.entries, len(vectors)

    def each(low: int, high: int) -> Tensor:  # ranks from 1
        return torch.tensor([[low, max(1, high)]] * experts, device="cpu")

    magnitudes = order_statistics(
        vectors.total_of, each(1 + int(count * _OUTLIERS), int(count * (1 - _OUTLIERS)))
    )
    lowest_kept = min(count, 1 + int(count * (1 - params.keep_ratio)))
    scores = order_statistics(
        vectors.total_of, each(lowest_kept, count), partial(scores_of, magnitudes)
    )
    return Bounds(magnitudes, scores)


def scores_of(
    magnitudes: Tensor,  # (N, 2)
    tau: Tensor,  # (N, m, n)
) -> Rows:
    """β_i of any rows, from `Bounds.magnitudes`."""
    low, high = magnitudes.to(tau.device).unbind(dim=1)
    width = torch.where(high > low, high - low, 1.0)  # where all are equal, none stands out
    total = by_strips(tau, lambda part, _rows: part.sum(dim=0))

    def of(i: int, rows: slice) -> Tensor:
        part = tau[i, rows]
        relative = (part.abs().clamp_(low[i], high[i]) - low[i]) / width[i]
        intra = (len(tau) * (relative.square() - 1)).exp_()
        return intra * (part * total[rows]).tanh_()

    return of


def _rescaled(scores: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """w_i; where all that are kept have the same score, 1 if it is positive."""
    if highest > lowest:
        return (scores - lowest).clamp_(min=0) / (highest - lowest)
    return ((scores >= lowest) & (scores > 0)).to(scores.dtype)


def _combine(tau: Tensor, params: PcbParams, bounds: Bounds) -> Combined:
    scores = scores_of(bounds.magnitudes, tau)
    low, high = bounds.magnitudes.to(tau.device).unbind(dim=1)
    lowest, highest = bounds.scores.to(tau.device).unbind(dim=1)

    def of(first: Tensor, rows: slice) -> Tensor:
        merged = torch.zeros_like(first[0])
        weights = torch.zeros_like(merged)
        for i in range(len(tau)):
            weight = _rescaled(scores(i, rows), lowest[i], highest[i])
            part = tau[i, rows]
            merged += weight * part.abs().clamp_(low[i], high[i]) * part.sign()
            weights += weight
        return params.coefficient * merged / weights.clamp(min=_LEAST_WEIGHT)

    # By the strips of one task vector, as when they were ranked: the last bits of a vectorised
    # function can depend on where an entry lies.
    return Combined(by_strips(tau[:1], of))


pcb = Method(
    name="pcb",
    title="PCB-Merging",
    source="Du et al., NeurIPS 2024 (arXiv 2410.02396), section 3",
    params=PcbParams,
    combine=_combine,
    prepare=_prepare,
    passes=5,  # two for the magnitudes' bounds, two for the scores'
    cost=lambda shape, experts, params: read_once(shape, experts, params) * 15,
)
