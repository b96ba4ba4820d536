"""DARE: other methods on task vectors most of whose entries are dropped at random.

What is left is rescaled by 1 / (share kept), so that a task vector's expectation is itself. Which
entries are dropped follows from the seed and the names of matrix and expert alone: they are drawn
by torch's generator for the CPU, whose seed is a hash of the three, row by row. So the result does
not depend on the order of experts, on other layers, or on who computes it where.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.evidence import Evidence
from apgd.lanes import lanes
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    keep_ratio_parameter,
    parameter,
    read_once,
)
from apgd.methods.linear import (
    AveragingParams,
    TaskArithmeticParams,
    task_arithmetic,
    weight_averaging,
)
from apgd.methods.ties import TiesParams, aggregate_parameter, ties
from apgd.strips import strips
from apgd.task_vectors import TaskVectors
from apgd.transformed import Transformed


@dataclass(frozen=True, kw_only=True)
class DareParams(MethodParams):
    """Parameters of dropping and rescaling, before weight averaging."""

    keep_ratio: float = parameter(
        0.1,
        "share of each task vector's entries that is kept, at random, and rescaled by its inverse",
        low=0,
        high=1,
        open_low=True,
        search=(0.05, 1.0),
    )
    seed: int = parameter(0, "seed of what is dropped", low=0)

    @property
    def inner(self) -> MethodParams:
        """Those of the method that works on what is left."""
        return AveragingParams()


@dataclass(frozen=True, kw_only=True)
class DareTaskArithmeticParams(DareParams):
    """Parameters of dropping and rescaling, before task arithmetic."""

    coefficient: float = parameter(
        0.3, "merging coefficient λ of every task vector", low=0, search=(0.05, 2.0), log=True
    )

    @property
    def inner(self) -> MethodParams:
        """Those of the method that works on what is left."""
        return TaskArithmeticParams(coefficient=self.coefficient)


@dataclass(frozen=True, kw_only=True)
class DareTiesParams(DareParams):
    """Parameters of dropping and rescaling, before Ties-Merging."""

    coefficient: float = parameter(
        0.3, "merging coefficient λ of the merged task vector", low=0, search=(0.05, 5.0), log=True
    )
    ties_keep_ratio: float = keep_ratio_parameter(0.2)
    aggregate: str = aggregate_parameter()

    @property
    def inner(self) -> MethodParams:
        """Those of the method that works on what is left."""
        return TiesParams(
            coefficient=self.coefficient,
            keep_ratio=self.ties_keep_ratio,
            aggregate=self.aggregate,
        )


def dropped(
    keep_ratio: float,
    seed: int,
    experts: tuple[str, ...],
    name: str,
    tau: Tensor,  # (N, m, n)
) -> Tensor:  # (N, m, n)
    """τ_i ⊙ M_i / keep_ratio, where M_i keeps every entry with this probability.

    Args:
        keep_ratio: in (0, 1].
        seed: of M.
        experts: names of the N experts.
        name: of the matrix.
        tau: its task vectors.
    """
    result = torch.empty_like(tau)

    def fill(i: int) -> None:
        draws = torch.Generator("cpu").manual_seed(_seed_of(seed, name, experts[i]))
        for rows in strips(tau[i : i + 1]):
            part = tau[i, rows]
            kept = torch.rand(part.shape, generator=draws, device="cpu") < keep_ratio
            result[i, rows] = torch.where(kept.to(tau.device), part / keep_ratio, 0.0)

    with lanes() as each:
        each(fill, range(len(tau)))
    return result


def _seed_of(seed: int, matrix: str, expert: str) -> int:
    digest = hashlib.sha256(json.dumps([seed, matrix, expert]).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _transform(inner: Method, vectors: TaskVectors, params: DareParams) -> TaskVectors:
    change = partial(dropped, params.keep_ratio, params.seed, vectors.experts)
    return inner.transform(Transformed(vectors, change), params.inner)


def _prepare(inner: Method, vectors: TaskVectors, params: DareParams, known: Evidence) -> object:
    return inner.prepare(vectors, params.inner, known)


def _combine(inner: Method, tau: Tensor, params: DareParams, prepared: object) -> Tensor | Combined:
    return inner.combine(tau, params.inner, prepared)


def _cost(inner: Method, shape: tuple[int, int], experts: int, params: DareParams) -> Cost:
    # Where task vectors are not kept, they are dropped anew for every pass.
    dropping = read_once(shape, experts, params) * 3 * inner.passes
    return inner.cost(shape, experts, params.inner) + dropping


def _before(inner: Method, name: str, params: type[DareParams]) -> Method:
    return Method(
        name=name,
        title=f"DARE + {inner.title}",
        source="Yu et al., ICML 2024 (arXiv 2311.03099), section 3",
        params=params,
        combine=partial(_combine, inner),
        transform=partial(_transform, inner),
        prepare=partial(_prepare, inner),
        passes=inner.passes,
        holds=inner.holds,
        cost=partial(_cost, inner),
    )


dare_average = _before(weight_averaging, "dare_average", DareParams)
dare_task_arithmetic = _before(task_arithmetic, "dare_task_arithmetic", DareTaskArithmeticParams)
dare_ties = _before(ties, "dare_ties", DareTiesParams)
