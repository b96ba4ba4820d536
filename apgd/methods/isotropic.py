"""Isotropic merging: every direction of the merged task vector counts the same.

Directions whose singular value is zero up to rounding are left out, because they are arbitrary. So
where the task vectors do not have full rank together, as those of LoRA do not, the singular values
are spread over the directions that there are, and their sum stays what it was.
"""

import math
from dataclasses import dataclass, replace

import torch
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
from apgd.projective import decompositions_at_once, task_norms
from apgd.strips import by_strips
from apgd.subspaces import (
    SingularTriplets,
    leading_singular_triplets,
    polar,
    polar_cost,
    triplets_cost,
)


@dataclass(frozen=True, kw_only=True)
class IsoCParams(MethodParams):
    """Parameters of Iso-C."""

    coefficient: float = coefficient_parameter(1.0, "the merged task vector", (0.2, 5.0))


@dataclass(frozen=True, kw_only=True)
class IsoCtsParams(IsoCParams):
    """Parameters of Iso-CTS."""

    common_share: float = parameter(
        0.8,
        "share of the directions that come from the sum of the task vectors, not from single tasks",
        low=0,
        high=1,
        search=(0.5, 1.0),
    )


def subspace_sizes(rank: int, experts: int, common_share: float) -> tuple[int, int]:
    """How many directions are common, and how many each task has of its own.

    What is not common is rounded to a multiple of the number of tasks, as published; half of one,
    to the even multiple.
    """
    per_task = round((rank - int(rank * common_share)) / experts)
    if per_task * experts > rank:
        per_task -= 1
    return rank - per_task * experts, per_task


def _iso_c(tau: Tensor, params: IsoCParams, _prepared: None) -> Combined:
    merged = _sum(tau)
    with lanes():
        found = polar(merged, out=merged)
    value = _mean(found.values)
    details = {"singular_value": value, "directions": len(found.values)}
    return Combined(merged.mul_(params.coefficient * value), details)


def _iso_cts(tau: Tensor, params: IsoCtsParams, _prepared: None) -> Combined:
    count, m, n = tau.shape
    common, per_task = subspace_sizes(min(m, n), count, params.common_share)
    directions = Directions(tau, min(m, n))
    with lanes():
        found = leading_singular_triplets(_sum(tau), common)
        outside = _complement(found.left) if m <= n and per_task > 0 else None
    directions.put(0, found)
    basis, scales = directions.left[:, :common], (task_norms(tau) * _blur(found, common)).tolist()

    def find_own(i: int) -> None:
        if outside is None:
            rest = torch.addmm(tau[i], basis, basis.T @ tau[i], alpha=-1)
            own = leading_singular_triplets(rest, per_task, scales[i])
        else:  # the same in fewer rows
            rest = outside.T.to(tau.dtype) @ tau[i]
            own = leading_singular_triplets(rest, per_task, scales[i])
            own = replace(own, left=outside @ own.left)
        directions.put(common + i * per_task, own)

    if per_task > 0:
        with lanes(most=decompositions_at_once(min(m, n))) as each:
            each(find_own, range(count))
    values = directions.values
    value = _mean(values[values > 0])
    details = {
        "singular_value": value,
        "common_directions": int((values[:common] > 0).sum()),
        "task_directions": int((values[common:] > 0).sum()),
    }
    return Combined(directions.orthogonalised(params.coefficient * value), details)


def _complement(basis: Tensor) -> Tensor:  # (m, c) -> (m, m − c)
    """An orthonormal basis of what is orthogonal to these columns."""
    complete: Tensor = torch.linalg.qr(basis, mode="complete").Q
    return complete[:, basis.shape[1] :].contiguous()


def _blur(found: SingularTriplets, wanted: int) -> float:
    """How much less than the first the last common direction is known.

    Where the sum has no more directions than these, what a task has outside them may be no more
    than their error.
    """
    values = found.values
    return float(values[0] / values[-1]) if 0 < len(values) < wanted else 1.0


def _sum(tau: Tensor) -> Tensor:  # (m, n)
    return by_strips(tau, lambda part, _rows: part.sum(dim=0))


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) > 0 else 0.0


def _iso_c_holds(shape: tuple[int, int], experts: int) -> int:
    # τ, the sum; and of the smaller side three matrices in float64.
    return 4 * math.prod(shape) * (experts + 2) + 24 * min(shape) ** 2


def _iso_cts_holds(shape: tuple[int, int], experts: int) -> int:
    # τ, the sum or the result, what one task has of its own, with its float64 side, in two lanes;
    # and the directions, whose decompositions take no less than those before.
    return 4 * math.prod(shape) * (experts + 5) + directions_bytes(shape, min(shape))


def _iso_c_cost(shape: tuple[int, int], experts: int, params: IsoCParams) -> Cost:
    return read_once(shape, experts, params) + polar_cost(shape)


def _iso_cts_cost(shape: tuple[int, int], experts: int, params: IsoCtsParams) -> Cost:
    (m, n), rank = shape, min(shape)
    common, per_task = subspace_sizes(rank, experts, params.common_share)
    if m <= n:
        own = Cost(flops=2 * m * n * (m - common)) + triplets_cost((m - common, n), per_task)
    else:
        own = Cost(flops=4 * m * n * common) + triplets_cost(shape, per_task)
    found = triplets_cost(shape, common) + (own * experts if per_task > 0 else Cost())
    return read_once(shape, experts, params) * 2 + found + directions_cost(shape, rank)


_PAPER = "Marczak et al., ICML 2025 (arXiv 2502.04959)"

iso_c = Method(
    name="iso_c",
    title="Iso-C",
    source=f"{_PAPER}, isotropic merging in the common subspace",
    params=IsoCParams,
    combine=_iso_c,
    holds=_iso_c_holds,
    cost=_iso_c_cost,
)

iso_cts = Method(
    name="iso_cts",
    title="Iso-CTS",
    source=f"{_PAPER}, isotropic merging in common and task-specific subspaces",
    params=IsoCtsParams,
    combine=_iso_cts,
    holds=_iso_cts_holds,
    cost=_iso_cts_cost,
)
