"""TSV-M: the leading singular vectors of every task vector, made orthogonal to each other."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.lanes import lanes
from apgd.methods._method import Combined, Method, MethodParams, parameter, read_once
from apgd.projective import decompositions_at_once
from apgd.strips import by_strips
from apgd.subspaces import leading_singular_triplets, polar, polar_cost, triplets_cost

_EXCESS = 1e-9


@dataclass(frozen=True, kw_only=True)
class TsvMParams(MethodParams):
    """Parameters of TSV-M; r = min(m, n) of a matrix, N the number of experts."""

    coefficient: float = parameter(
        1.0,
        "merging coefficient α of the merged task vector",
        low=0,
        search=(0.2, 5.0),
        log=True,
    )
    keep_ratio: float | None = parameter(
        None,
        "share of each task vector's singular directions that is kept, largest first; 1/N if not "
        "given",
        low=0,
        high=1,
        open_low=True,
        search=(0.02, 1.0),
        log=True,
    )

    def resolved(self, rank: int, experts: int) -> Self:
        """With 1/N filled in where no share was given."""
        if self.keep_ratio is not None:
            return self
        return dataclasses.replace(self, keep_ratio=1 / experts)


def triplets_kept(rank: int, experts: int, keep_ratio: float | None) -> int:
    """How many singular directions are kept of each task vector: ⌊share · r⌋."""
    if keep_ratio is None:
        return rank // experts
    return math.floor(rank * keep_ratio + _EXCESS)  # 0.29 · 100 is less than 29 in floating point


def _combine(tau: Tensor, params: TsvMParams, _prepared: None) -> Combined:
    count, m, n = tau.shape
    kept = triplets_kept(min(m, n), count, params.keep_ratio)
    if kept == 0:
        return Combined(tau.new_zeros(m, n), {"directions_per_task": 0})
    # Columns that no direction is found for stay zero; they change nothing.
    left, right = tau.new_zeros(m, count * kept), tau.new_zeros(n, count * kept)
    values = tau.new_zeros(count * kept)

    def decompose(i: int) -> None:
        found = leading_singular_triplets(tau[i], kept)
        columns = slice(i * kept, i * kept + len(found.values))
        left[:, columns], right[:, columns] = found.left, found.right
        values[columns] = found.values.to(tau.dtype)

    with lanes(most=decompositions_at_once(min(m, n))) as each:
        each(decompose, range(count))
    with lanes(most=decompositions_at_once(min(max(m, n), count * kept))) as each:
        each(lambda side: polar(side, out=side), (left, right))
    left.mul_(params.coefficient * values)
    return Combined(
        by_strips(tau[:1], lambda _part, rows: left[rows] @ right.T),
        {"directions_per_task": kept},
    )


def _holds(shape: tuple[int, int], experts: int) -> int:
    # τ and the result; the two sides where everything is kept; their decompositions in float64.
    (m, n), rank = shape, min(shape)
    sides = 4 * experts * rank * (m + n)
    largest = min(max(m, n), experts * rank)
    return 4 * m * n * (experts + 1) + sides + 24 * largest**2


def _cost(shape: tuple[int, int], experts: int, params: TsvMParams) -> Cost:
    (m, n), rank = shape, min(shape)
    kept = triplets_kept(rank, experts, params.keep_ratio)
    columns = experts * kept
    sides = polar_cost((m, columns)) + polar_cost((n, columns)) + Cost(flops=2 * m * n * columns)
    return read_once(shape, experts, params) + triplets_cost(shape, kept) * experts + sides


tsv_m = Method(
    name="tsv_m",
    title="TSV-M",
    source="Gargiulo et al., CVPR 2025 (arXiv 2412.00081), TSV-Merge",
    params=TsvMParams,
    combine=_combine,
    holds=_holds,
    cost=_cost,
)
