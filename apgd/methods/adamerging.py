"""AdaMerging and AdaMerging++: merging coefficients learned on unlabelled inputs.

"Layer-wise" means one coefficient per task and merged matrix here: biases and norms, which have
their own in the paper, stay the base's, as with every other method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from apgd.adaptation import AdaptationSettings, adapted_coefficients, held, weighted_sum
from apgd.evidence import Evidence, Need
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    keep_ratio_parameter,
    learning_rate_parameter,
    parameter,
    read_once,
    six_copies,
)
from apgd.methods._ties import Election, agreeing, election, trimmed
from apgd.strips import strips
from apgd.task_vectors import TaskVectors
from apgd.transformed import Transformed, changing_bytes


@dataclass(frozen=True, kw_only=True)
class AdaMergingParams(MethodParams):
    """Parameters of AdaMerging."""

    coefficient: float = parameter(
        0.3, "every merging coefficient λ at the start", low=0, search=(0.05, 1.0), log=True
    )
    learning_rate: float = learning_rate_parameter(
        1e-3, "Adam's learning rate for the coefficients", (1e-4, 1e-1)
    )
    iterations: int = parameter(500, "Adam steps on the coefficients (500 in the paper)", low=0)
    batch_size: int = parameter(16, "inputs of every task in a step", low=1)
    seed: int = parameter(0, "seed of the order in which inputs are seen", low=0)


@dataclass(frozen=True, kw_only=True)
class AdaMergingPlusPlusParams(AdaMergingParams):
    """Parameters of AdaMerging++: those of AdaMerging, and its trimming's."""

    keep_ratio: float = keep_ratio_parameter(0.2)


def _held(vectors: TaskVectors, _params: AdaMergingParams) -> TaskVectors:
    return held(vectors)


def _ties(vectors: TaskVectors, params: AdaMergingPlusPlusParams) -> TaskVectors:
    found = election(vectors, params.keep_ratio)
    return held(Transformed(vectors, partial(_trimmed_and_agreeing, found)))


def _trimmed_and_agreeing(found: Election, _name: str, tau: Tensor) -> Tensor:  # (N, m, n)
    thresholds, majority = found.thresholds.to(tau.device), found.majority.to(tau)
    # Rows of all experts together, as TaskVectors has them.
    result = tau.new_empty(tau.shape[1], len(tau), tau.shape[2]).transpose(0, 1)
    for rows in strips(tau):
        result[:, rows] = agreeing(trimmed(tau[:, rows], thresholds), majority)
    return result


def _prepare(
    task_wise: bool,
    vectors: TaskVectors,
    params: AdaMergingParams,
    evidence: Evidence,
) -> dict[str, Tensor]:  # (N,) by matrix
    settings = AdaptationSettings(
        coefficient=params.coefficient,
        iterations=params.iterations,
        learning_rate=params.learning_rate,
        batch_size=params.batch_size,
        seed=params.seed,
        task_wise=task_wise,
    )
    return adapted_coefficients(vectors, evidence.unlabelled(), settings)


def combine(tau: Tensor, _params: MethodParams, coefficients: Tensor) -> Combined:
    """Σ_i λ_i τ_i with the coefficients that were learned for this matrix."""
    return Combined(weighted_sum(tau, coefficients), {"coefficients": coefficients.tolist()})


def _of(*, plus_plus: bool, task_wise: bool) -> Method:
    wise = "task-wise" if task_wise else "layer-wise"
    transform: Callable[[TaskVectors, Any], TaskVectors] = _ties if plus_plus else _held
    return Method(
        name=f"adamerging{'_plusplus' if plus_plus else ''}_{wise.replace('-', '_')}",
        title=f"AdaMerging{'++' if plus_plus else ''}, {wise}",
        source="Yang et al., ICLR 2024 (arXiv 2310.02575), section 3.2",
        params=AdaMergingPlusPlusParams if plus_plus else AdaMergingParams,
        combine=combine,
        needs=Need.INPUTS,
        transform=transform,
        prepare=partial(_prepare, task_wise),
        passes=4 if plus_plus else 1,  # three for the election; then they are kept
        cost=lambda shape, experts, params: (
            read_once(shape, experts, params) * ((1 + task_wise) * params.iterations + 2)
        ),
        holds=changing_bytes if plus_plus else six_copies,
        quick={"iterations": 3},
    )


adamerging_task_wise = _of(plus_plus=False, task_wise=True)
adamerging_layer_wise = _of(plus_plus=False, task_wise=False)
adamerging_plusplus_task_wise = _of(plus_plus=True, task_wise=True)
adamerging_plusplus_layer_wise = _of(plus_plus=True, task_wise=False)
