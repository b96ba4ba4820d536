"""DOGE TA: task arithmetic with the modification vector and the coefficients of APGD."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from apgd import projective
from apgd.cost import Cost
from apgd.evidence import Evidence
from apgd.methods._apgd import ApgdParams, modification, modification_cost
from apgd.methods._descent import Modifications, growing
from apgd.methods._method import Combined, Method, keep_ratio_parameter, read_once
from apgd.shared_work import SharedWork
from apgd.sweep import Sweep, Trajectory
from apgd.task_vectors import Delta, TaskVectors


@dataclass(frozen=True, kw_only=True)
class DogeTaParams(ApgdParams):
    """Parameters of DOGE TA: those of APGD, and its masks'."""

    keep_ratio: float = keep_ratio_parameter(0.3)


def _prepare(vectors: TaskVectors, params: DogeTaParams, _evidence: Evidence) -> Tensor:  # (N,)
    return vectors.magnitude_thresholds(params.keep_ratio)


def combine(
    tau: Tensor,  # (N, m, n)
    params: DogeTaParams,
    thresholds: Tensor,  # (N,)
    engine: ModuleType | None = None,
) -> Combined:
    """The paper's Algorithm 1 for one matrix; `engine` has the solvers, as in `modification`."""
    found = modification(tau, params, engine)
    return Combined(
        projective.masked_sum(tau, found.coefficients, found.delta, thresholds),
        {**found.details, "kept": projective.kept_shares(tau, thresholds).tolist()},
    )


def _cost(shape: tuple[int, int], experts: int, params: DogeTaParams) -> Cost:
    return read_once(shape, experts, params) * 4 + modification_cost(shape, experts, params)


class _Run(Trajectory):
    """Masks come last: one Δ serves every keep ratio."""

    def __init__(self, shared: SharedWork, params: DogeTaParams) -> None:
        self._shared = shared
        self._modifications = Modifications(shared, params)

    def reaches(self, amount: int | None) -> bool:
        """Whether Δ after so many iterations can be had."""
        return self._modifications.reaches(amount)

    def delta(self, amount: int | None, late: Mapping[str, Any]) -> Delta:
        """θ − θ_0 after so many iterations, at a keep ratio."""
        thresholds = self._shared.magnitude_thresholds(late["keep_ratio"])
        return {
            name: projective.masked_sum(
                self._shared.vectors[name],
                self._modifications.coefficients[name],
                delta,
                thresholds,
            )
            for name, delta in self._modifications.at(amount).items()
        }


def _sweep(params: DogeTaParams) -> Sweep:
    return Sweep(
        growing="iterations" if growing(params) else None,
        late=("keep_ratio",),
        bases="basis_size",
        begin=_Run,
    )


doge_ta = Method(
    name="doge_ta",
    title="DOGE TA",
    source="Wei et al., ICML 2025 (arXiv 2501.01230), algorithm 1",
    params=DogeTaParams,
    combine=combine,
    prepare=_prepare,
    passes=3,  # two for the thresholds
    cost=_cost,
    with_apgd=False,  # it is APGD
    sweep=_sweep,
)
