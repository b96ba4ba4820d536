"""DOGE TA: task arithmetic with the modification vector and the coefficients of APGD."""

import dataclasses
from dataclasses import dataclass
from typing import Self

from apgd import projective
from apgd.methods._method import Limit, Method, MethodParams, keep_ratio_parameter, parameter
from apgd.task_vectors import Delta, TaskVectors


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
        400, "Adam steps on the modification vector Δ", low=1, search=(10, 400), log=True
    )
    learning_rate: float = parameter(
        1e-4,
        "Adam's learning rate",
        low=0,
        open_low=True,
        search=(1e-6, 1e-3),
        log=True,
    )

    def resolved(self, rank: int, experts: int) -> Self:
        """With k = ⌊r/N⌋ filled in where no basis size was given."""
        if self.basis_size is not None:
            return self
        return dataclasses.replace(self, basis_size=default_basis_size(rank, experts))


def default_basis_size(rank: int, experts: int) -> int:
    """K = ⌊r/N⌋, the paper's size of a task vector's basis."""
    return rank // experts


def _combine(vectors: TaskVectors, params: DogeTaParams) -> Delta:
    """The steps in the order of the paper's Algorithm 1, one matrix at a time."""
    thresholds = vectors.magnitude_thresholds(params.keep_ratio)
    merged: Delta = {}
    for name, tau in vectors:
        given = params.basis_size
        k = given if given is not None else default_basis_size(min(tau.shape[1:]), len(vectors))
        k_shared = k if params.shared_basis_size is None else params.shared_basis_size
        coefficients = projective.task_aware_coefficients(tau, params.eta)
        subspace = projective.shared_subspace(tau, k, k_shared)
        modification = projective.modification_vector(
            tau, coefficients, subspace, params.iterations, params.learning_rate
        )
        merged[name] = projective.masked_sum(tau, coefficients, modification, thresholds)
    return merged


doge_ta = Method(
    name="doge_ta",
    title="DOGE TA",
    source="Wei et al., ICML 2025 (arXiv 2501.01230), algorithm 1",
    params=DogeTaParams,
    combine=_combine,
)
