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

from apgd.lanes import lanes
from apgd.methods._before import before
from apgd.methods._method import (
    Method,
    MethodParams,
    coefficient_parameter,
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
from apgd.transformed import Change


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

    coefficient: float = coefficient_parameter(0.3, "every task vector", (0.05, 2.0))

    @property
    def inner(self) -> MethodParams:
        """Those of the method that works on what is left."""
        return TaskArithmeticParams(coefficient=self.coefficient)


@dataclass(frozen=True, kw_only=True)
class DareTiesParams(DareParams):
    """Parameters of dropping and rescaling, before Ties-Merging."""

    coefficient: float = coefficient_parameter(0.3, "the merged task vector", (0.05, 5.0))
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


def _dropping(vectors: TaskVectors, params: DareParams) -> Change:
    return partial(dropped, params.keep_ratio, params.seed, vectors.experts)


def _dare(inner: Method, name: str, params: type[DareParams]) -> Method:
    return before(
        inner,
        _dropping,
        lambda shape, experts, given: read_once(shape, experts, given) * 3,
        name=name,
        title=f"DARE + {inner.title}",
        source="Yu et al., ICML 2024 (arXiv 2311.03099), section 3",
        params=params,
    )


dare_average = _dare(weight_averaging, "dare_average", DareParams)
dare_task_arithmetic = _dare(task_arithmetic, "dare_task_arithmetic", DareTaskArithmeticParams)
dare_ties = _dare(ties, "dare_ties", DareTiesParams)
