"""APGD as a step of methods: its parameters, and the modification vector that they give."""

import dataclasses
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor

from apgd import fused, projective
from apgd.cost import Cost
from apgd.methods._method import (
    Limit,
    MethodParams,
    choice_parameter,
    learning_rate_parameter,
    parameter,
)
from apgd.summary import Detail


@dataclass(frozen=True, kw_only=True)
class ApgdParams(MethodParams):
    """Parameters of APGD; r = min(m, n) of a matrix, N the number of experts."""

    eta: float = parameter(
        0.07,
        "η of the task-aware coefficients λ_i = η / ‖τ_i‖ (0.07 vision, 0.15 language)",
        low=0,
        open_low=True,
        search=(0.01, 1.0),
        log=True,
    )
    uniform_coefficient: float | None = parameter(
        None,
        "one λ for all tasks and matrices in place of η / ‖τ_i‖, which is taken if not given",
        low=0,
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
    iterations: int = parameter(
        400,
        "Adam steps on the modification vector Δ, none for Δ = 0; most passes of the exact solver",
        low=0,
        search=(10, 400),
        log=True,
        when=("solver", "adam"),
    )
    learning_rate: float = learning_rate_parameter(
        1e-4, "Adam's learning rate", (1e-6, 1e-3), when=("solver", "adam")
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


@dataclass(frozen=True)
class Modification:
    """What APGD finds for one matrix."""

    coefficients: Tensor
    """λ_i, (N,)."""
    delta: Tensor
    """The modification vector Δ, (m, n)."""
    details: dict[str, Detail]
    """Figures for the summary."""


def engine_for(tau: Tensor) -> ModuleType:
    """The solvers for a device: `apgd.fused` on a CPU, `apgd.projective` elsewhere."""
    return fused if tau.device.type == "cpu" else projective


def coefficients_of(
    tau: Tensor,  # (N, m, n)
    params: ApgdParams,
) -> Tensor:  # (N,)
    """λ_i, task-aware unless the parameters give one for all; 0 for a zero task vector."""
    if params.uniform_coefficient is None:
        return projective.task_aware_coefficients(tau, params.eta)
    norms = projective.task_norms(tau)
    return torch.where(norms > 0, params.uniform_coefficient, 0.0).to(tau.dtype)


def basis_sizes(
    tau: Tensor,  # (N, m, n)
    params: ApgdParams,
) -> tuple[int, int]:
    """K of every task vector's basis and of the shared subspace, as the parameters say."""
    rank = min(tau.shape[1:])
    k = default_basis_size(rank, len(tau)) if params.basis_size is None else params.basis_size
    return k, k if params.shared_basis_size is None else params.shared_basis_size


def subspace_of(
    tau: Tensor,  # (N, m, n)
    params: ApgdParams,
) -> Tensor:  # (m, at most k)
    """U, the subspace that the task vectors share, at the size that the parameters say."""
    return projective.shared_subspace(tau, *basis_sizes(tau, params))


def modification(
    tau: Tensor,  # (N, m, n)
    params: ApgdParams,
    engine: ModuleType | None = None,
) -> Modification:
    """Algorithm 1 up to the modification vector.

    `engine` has the solvers, where not those of `engine_for`.
    """
    engine = engine or engine_for(tau)
    coefficients = coefficients_of(tau, params)
    subspace = subspace_of(tau, params)
    if params.solver == "exact":
        delta = engine.exact_modification_vector(
            tau, coefficients, subspace, params.tolerance, params.iterations
        )
    else:
        delta = engine.modification_vector(
            tau, coefficients, subspace, params.iterations, params.learning_rate
        )
    details: dict[str, Detail] = {
        "coefficients": coefficients.tolist(),
        "subspace_size": subspace.shape[1],
        "loss_before": projective.gap_loss(tau, coefficients, torch.zeros_like(delta)),
        "loss_after": projective.gap_loss(tau, coefficients, delta),
    }
    return Modification(coefficients, delta, details)


def modifications(
    tau: Tensor,  # (N, m, n)
    params: ApgdParams,
    engine: ModuleType | None = None,
) -> Tensor:  # (N, m, n)
    """The same with one modification vector per task, as DOGE AM has them.

    Of the exact solver the minimum is known for Σ_j λ_j Δ_j alone, and the smallest Δ_j that have
    it are taken.
    """
    engine = engine or engine_for(tau)
    if params.solver == "exact":
        found = modification(tau, params, engine)
        return projective.distributed(found.delta, found.coefficients)
    found_vectors: Tensor = engine.modification_vectors(
        tau,
        coefficients_of(tau, params),
        subspace_of(tau, params),
        params.iterations,
        params.learning_rate,
    )
    return found_vectors


def not_searched(params: type[MethodParams], name: str) -> Any:
    """Declare a parameter again as another class has it, for a method that does not search it."""
    field = next(field for field in dataclasses.fields(params) if field.name == name)
    return dataclasses.field(default=field.default, metadata={**field.metadata, "search": None})


def decomposition_cost(shape: tuple[int, int], experts: int) -> Cost:
    """Gram matrices and leading eigenvectors of every expert and of the bases side by side.

    The weights (float64, and much of it slower than a matrix product) are from measurements.
    """
    rank = min(shape)
    return Cost(flops=(experts + 1) * (4 * math.prod(shape) * rank + 10 * rank**3))


def modification_cost(shape: tuple[int, int], experts: int, params: ApgdParams) -> Cost:
    """Decompositions, then as many passes over τ and projections as the solver takes.

    That of the exact solver is a dozen in measurements.
    """
    (m, n), rank = shape, min(shape)
    k = default_basis_size(rank, experts) if params.basis_size is None else params.basis_size
    decompositions = decomposition_cost(shape, experts) if k else Cost()
    one_pass = Cost(flops=4 * m * k * n, bytes=4 * m * n * (experts + 9))
    passes = params.iterations if params.solver == "adam" else min(params.iterations, 12) * 2
    return decompositions + one_pass * passes
