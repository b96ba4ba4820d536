"""TSV-M: the leading singular vectors of every task vector, made orthogonal to each other."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from apgd.cost import Cost
from apgd.lanes import lanes
from apgd.methods._directions import Directions, directions_bytes, directions_cost
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    coefficient_parameter,
    parameter,
    read_once,
)
from apgd.projective import decompositions_at_once
from apgd.subspaces import leading_singular_triplets, triplets_cost

_EXCESS = 1e-9


@dataclass(frozen=True, kw_only=True)
class TsvMParams(MethodParams):
    """Parameters of TSV-M; r = min(m, n) of a matrix, N the number of experts."""

    coefficient: float = coefficient_parameter(1.0, "the merged task vector", (0.2, 5.0))
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

    def resolved(self, rank: int, experts: int) -> Self:  # noqa: ARG002 - only N matters
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
    directions = Directions(tau, count * kept)

    def decompose(i: int) -> None:
        directions.put(i * kept, leading_singular_triplets(tau[i], kept))

    with lanes(most=decompositions_at_once(min(m, n))) as each:
        each(decompose, range(count))
    merged = directions.orthogonalised(params.coefficient * directions.values)
    return Combined(merged, {"directions_per_task": kept})


def _holds(shape: tuple[int, int], experts: int) -> int:
    # τ, the result, one task's directions in float64, and all of every task's: a smaller share of
    # them is not known here.
    rank = min(shape)
    directions = 8 * rank * sum(shape) + directions_bytes(shape, experts * rank)
    return 4 * math.prod(shape) * (experts + 1) + directions


def _cost(shape: tuple[int, int], experts: int, params: TsvMParams) -> Cost:
    kept = triplets_kept(min(shape), experts, params.keep_ratio)
    own = triplets_cost(shape, kept) * experts
    return read_once(shape, experts, params) + own + directions_cost(shape, experts * kept)


tsv_m = Method(
    name="tsv_m",
    title="TSV-M",
    source="Gargiulo et al., CVPR 2025 (arXiv 2412.00081), TSV-Merge",
    params=TsvMParams,
    combine=_combine,
    holds=_holds,
    cost=_cost,
)
