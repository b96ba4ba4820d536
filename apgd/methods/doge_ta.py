"""DOGE TA: task arithmetic with the modification vector and the coefficients of APGD."""

import dataclasses
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Self

import torch
from torch import Tensor

from apgd import fused, projective
from apgd.cost import Cost
from apgd.methods._method import (
    Combined,
    Limit,
    Method,
    MethodParams,
    choice_parameter,
    keep_ratio_parameter,
    parameter,
    read_once,
)
from apgd.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class DogeTaParams(MethodParams):
    """Parameters of DOGE TA; r = min(m, n) of a matrix, N the number of experts."""

    eta: float = parameter(
        0.07,
        "η of the task-aware coefficients λ_i = η / ‖τ_i‖ (0.07 vision, 0.15 language)",
        low=0,
        open_low=True,
        search=(0.01, 1.0),
        log=True,
    )
    basis_size: int | None = parameter(
        None,
        "k: singular vectors taken from each task vector; ⌊r/N⌋ if not given, 0 for no projection",
        low=0,
        high=Limit.RANK,
        search=(1, Limit.RANK),
        log=True,
    )
    shared_basis_size: int | None = parameter(
        None,
        "dimension of the shared subspace; as basis_size if not given",
        low=0,
        high=Limit.RANK,
    )
    keep_ratio: float = keep_ratio_parameter(0.3)
    iterations: int = parameter(
        400,
        "Adam steps on the modification vector Δ; the most passes of the exact solver",
        low=1,
        search=(10, 400),
        log=True,
    )
    learning_rate: float = parameter(
        1e-4,
        "Adam's learning rate",
        low=0,
        open_low=True,
        search=(1e-6, 1e-3),
        log=True,
    )
    solver: str = choice_parameter(
        "adam",
        ("adam", "exact"),
        "how Δ is found: the paper's Adam steps, or the exact minimiser off the shared subspace",
    )
    tolerance: float = parameter(
        1e-4,
        "where the exact solver stops: gradient left, relative to that of Δ = 0",
        low=0,
        high=1,
        open_low=True,
    )

    def resolved(self, rank: int, experts: int) -> Self:
        """With k = ⌊r/N⌋ filled in where no basis size was given."""
        if self.basis_size is not None:
            return self
        return dataclasses.replace(self, basis_size=default_basis_size(rank, experts))


def default_basis_size(rank: int, experts: int) -> int:
    """K = ⌊r/N⌋, the paper's size of a task vector's basis."""
    return rank // experts


def _prepare(vectors: TaskVectors, params: DogeTaParams) -> Tensor:  # (N,)
    return vectors.magnitude_thresholds(params.keep_ratio)


def combine(
    tau: Tensor,  # (N, m, n)
    params: DogeTaParams,
    thresholds: Tensor,  # (N,)
    engine: ModuleType | None = None,
) -> Combined:
    """The paper's Algorithm 1 for one matrix.

    `engine` has the solvers: `apgd.projective`, or `apgd.fused`, which is the one on a CPU.
    """
    if engine is None:
        engine = fused if tau.device.type == "cpu" else projective
    rank = min(tau.shape[1:])
    k = default_basis_size(rank, len(tau)) if params.basis_size is None else params.basis_size
    k_shared = k if params.shared_basis_size is None else params.shared_basis_size
    coefficients = projective.task_aware_coefficients(tau, params.eta)
    subspace = projective.shared_subspace(tau, k, k_shared)
    if params.solver == "exact":
        modification = engine.exact_modification_vector(
            tau, coefficients, subspace, params.tolerance, params.iterations
        )
    else:
        modification = engine.modification_vector(
            tau, coefficients, subspace, params.iterations, params.learning_rate
        )
    return Combined(
        projective.masked_sum(tau, coefficients, modification, thresholds),
        {
            "coefficients": coefficients.tolist(),
            "subspace_size": subspace.shape[1],
            "loss_before": projective.gap_loss(tau, coefficients, torch.zeros_like(modification)),
            "loss_after": projective.gap_loss(tau, coefficients, modification),
            "kept": projective.kept_shares(tau, thresholds).tolist(),
        },
    )


def decomposition_cost(shape: tuple[int, int], experts: int) -> Cost:
    """Gram matrices and leading eigenvectors of every expert and of the bases side by side.

    The weights (float64, and much of it slower than a matrix product) are from measurements.
    """
    rank = min(shape)
    return Cost(flops=(experts + 1) * (4 * math.prod(shape) * rank + 10 * rank**3))


def _cost(shape: tuple[int, int], experts: int, params: DogeTaParams) -> Cost:
    """Decompositions, then as many passes over τ and projections as the solver takes.

    That of the exact solver is a dozen in measurements.
    """
    (m, n), rank = shape, min(shape)
    k = default_basis_size(rank, experts) if params.basis_size is None else params.basis_size
    decompositions = decomposition_cost(shape, experts) if k else Cost()
    one_pass = Cost(flops=4 * m * k * n, bytes=4 * m * n * (experts + 9))
    passes = params.iterations if params.solver == "adam" else min(params.iterations, 12) * 2
    return read_once(shape, experts, params) * 4 + decompositions + one_pass * passes


doge_ta = Method(
    name="doge_ta",
    title="DOGE TA",
    source="Wei et al., ICML 2025 (arXiv 2501.01230), algorithm 1",
    params=DogeTaParams,
    combine=combine,
    prepare=_prepare,
    passes=3,  # two for the thresholds
    cost=_cost,
)
