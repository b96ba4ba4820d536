"""RegMean: layers that answer every expert's inputs as that expert does, by least squares."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.evidence import Evidence, Need
from apgd.lanes import lanes
from apgd.methods._method import Combined, Method, MethodParams, parameter
from apgd.methods._statistics import MatrixStatistics, Statistics
from apgd.task_vectors import TaskVectors

_PANEL = 128  # rows of a matrix that are worked on by one thread


@dataclass(frozen=True, kw_only=True)
class RegMeanParams(MethodParams):
    """Parameters of RegMean."""

    off_diagonal: float = parameter(
        0.9,
        "what inner products of different input coordinates are multiplied by; 0.1 for T5",
        low=0,
        high=1,
        search=(0.0, 1.0),
    )
    ridge: float = parameter(
        1e-6,
        "what the inner products of every expert have added to their diagonal, in units of its "
        "mean; where no expert has inputs, the experts are averaged",
        low=0,
        open_low=True,
    )


def _prepare(vectors: TaskVectors, _params: RegMeanParams, evidence: Evidence) -> Statistics:
    return Statistics(vectors, evidence, Need.GRAM)


def _combine(tau: Tensor, params: RegMeanParams, inputs: MatrixStatistics) -> Combined:
    """(Σ_i τ_i G̃_i)(Σ_i G̃_i)⁻¹ (Jin et al., equation 2, for matrices that are applied as x Wᵀ).

    G̃_i is G_i with its off-diagonal entries scaled down and a ridge ρ on its diagonal. The ridge
    makes the sum invertible: directions in which no expert has inputs to speak of get the average
    of the experts, which is the limit of small ρ. Where rounding leaves the sum indefinite all the
    same, ρ is raised tenfold until it is not; the summary has the ρ that was used, in units of the
    diagonal's mean.
    """
    count, m, n = tau.shape
    panels = [slice(low, min(low + _PANEL, m)) for low in range(0, m, _PANEL)]
    product = torch.zeros(m, n, dtype=torch.float64, device=tau.device)
    total = torch.zeros(n, n, dtype=torch.float64, device=tau.device)
    with lanes() as each:
        for number in range(count):
            gram = _scaled(inputs[number].to(tau.device, torch.float64), params.off_diagonal)
            total += gram

            def multiply(rows: slice, number: int = number, gram: Tensor = gram) -> None:
                product[rows].addmm_(tau[number, rows].double(), gram)

            each(multiply, panels)
        unit = float(total.diagonal().mean()) / count or 1.0  # 1 where nobody has inputs at all
        factor, ridge = _cholesky(total, params.ridge, count * unit)

        def solve(rows: slice) -> None:
            average = tau[:, rows].sum(dim=0, dtype=torch.float64)
            right = product[rows].add_(average, alpha=ridge * unit)
            product[rows] = torch.cholesky_solve(right.T, factor).T

        each(solve, panels)
    return Combined(product.to(tau.dtype), {"ridge": ridge})


def _scaled(
    gram: Tensor,  # (n, n), float64, a copy
    off_diagonal: float,
) -> Tensor:  # (n, n)
    diagonal = gram.diagonal().clone()
    gram.mul_(off_diagonal).diagonal().copy_(diagonal)
    return gram


def _cholesky(
    total: Tensor,  # (n, n), float64, positive semi-definite but for rounding; changed
    ridge: float,
    unit: float,
) -> tuple[Tensor, float]:  # (n, n), lower triangular
    """The factor of total + ridge · unit · I, and the ridge that it took."""
    added = 0.0
    while True:
        total.diagonal().add_((ridge - added) * unit)
        factor, failed = torch.linalg.cholesky_ex(total)
        if not failed:
            return factor, ridge
        added, ridge = ridge, 10 * ridge


def _holds(shape: tuple[int, int], experts: int) -> int:
    """Task vectors, G as it is read and in float64, its sum, the factor and its making."""
    m, n = shape
    return 4 * m * n * (experts + 6) + 8 * 6 * n * n


def _cost(shape: tuple[int, int], experts: int, _params: RegMeanParams) -> Cost:
    m, n = shape
    products = 2 * m * n * n * (experts + 1) + n**3 / 3
    return Cost(flops=2 * products, bytes=4 * math.prod(shape) * experts + 30 * n * n * experts)


regmean = Method(
    name="regmean",
    title="RegMean",
    source="Jin et al., ICLR 2023 (arXiv 2212.09849), section 3",
    params=RegMeanParams,
    combine=_combine,
    prepare=_prepare,
    needs=Need.GRAM,
    holds=_holds,
    cost=_cost,
)
