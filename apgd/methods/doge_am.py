"""DOGE AM: AdaMerging of task vectors to which APGD added a modification vector each."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from apgd.adaptation import AdaptationSettings, adapted_coefficients, held
from apgd.cost import Cost
from apgd.evidence import Evidence, Need
from apgd.methods._apgd import ApgdParams, modification_cost, modifications, not_searched
from apgd.methods._method import (
    Method,
    keep_ratio_parameter,
    learning_rate_parameter,
    parameter,
    read_once,
)
from apgd.methods.adamerging import combine
from apgd.projective import kept
from apgd.strips import strips
from apgd.task_vectors import TaskVectors
from apgd.transformed import Transformed


@dataclass(frozen=True, kw_only=True)
class DogeAmParams(ApgdParams):
    """Parameters of DOGE AM: those of APGD, its masks', and AdaMerging's as `adaptation_…`."""

    basis_size: int | None = not_searched(ApgdParams, "basis_size")
    iterations: int = not_searched(ApgdParams, "iterations")
    learning_rate: float = not_searched(ApgdParams, "learning_rate")
    keep_ratio: float = keep_ratio_parameter(0.3)
    coefficient: float = parameter(0.3, "every merging coefficient λ at the start", low=0)
    adaptation_iterations: int = parameter(500, "Adam steps on the merging coefficients", low=0)
    adaptation_learning_rate: float = learning_rate_parameter(
        1e-3, "Adam's learning rate for the merging coefficients", (1e-4, 1e-1)
    )
    batch_size: int = parameter(16, "inputs of every task in a step", low=1)
    seed: int = parameter(0, "seed of the order in which inputs are seen", low=0)


def _transform(vectors: TaskVectors, params: DogeAmParams) -> TaskVectors:
    # Entries are ranked before Δ_i is added.
    thresholds = vectors.magnitude_thresholds(params.keep_ratio)
    return held(Transformed(vectors, partial(_masked, params, thresholds), _holds))


def _masked(params: DogeAmParams, thresholds: Tensor, _name: str, tau: Tensor) -> Tensor:
    """M_i ⊙ (τ_i + Δ_i), (N, m, n)."""
    result = modifications(tau, params)
    for rows in strips(tau):
        part = tau[:, rows]
        result[:, rows] = kept(part, thresholds) * (part + result[:, rows])
    return result


def _holds(shape: tuple[int, int], experts: int) -> int:
    """τ, Δ of every task, and eight matrices: S, gradient, its means, shares of the projection."""
    return 4 * shape[0] * shape[1] * (2 * experts + 8)


def _prepare(
    vectors: TaskVectors, params: DogeAmParams, evidence: Evidence
) -> dict[str, Tensor]:  # (N,) by matrix
    settings = AdaptationSettings(
        coefficient=params.coefficient,
        iterations=params.adaptation_iterations,
        learning_rate=params.adaptation_learning_rate,
        batch_size=params.batch_size,
        seed=params.seed,
        task_wise=False,
    )
    return adapted_coefficients(vectors, evidence.unlabelled(), settings)


def _cost(shape: tuple[int, int], experts: int, params: DogeAmParams) -> Cost:
    # Adam writes every Δ_i at every step, for which each is read and written.
    vectors = Cost(bytes=8 * shape[0] * shape[1] * experts) * params.iterations
    reads = read_once(shape, experts, params) * (params.adaptation_iterations + 4)
    return modification_cost(shape, experts, params) + vectors + reads


doge_am = Method(
    name="doge_am",
    title="DOGE AM",
    source="Wei et al., ICML 2025 (arXiv 2501.01230), algorithm 1; Yang et al. (arXiv 2310.02575)",
    params=DogeAmParams,
    combine=combine,
    needs=Need.INPUTS,
    transform=_transform,
    prepare=_prepare,
    passes=3,  # two for the thresholds; then they are kept
    holds=_holds,
    cost=_cost,
    quick={"adaptation_iterations": 3},
    with_apgd=False,  # it is APGD
)
