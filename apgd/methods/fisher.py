"""Fisher merging: every entry is averaged with the experts' Fisher information as weights.

The paper leaves open how experts are put on one scale; it is done as in FusionBench, which adds a
minimum to the information and divides by the information's norm.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.evidence import Evidence, Need
from apgd.methods._method import Method, MethodParams, choice_parameter, parameter
from apgd.methods._statistics import MatrixStatistics, Statistics
from apgd.projective import task_norms
from apgd.task_vectors import TaskVectors

_NORM, _NONE = "norm", "none"


@dataclass(frozen=True, kw_only=True)
class FisherParams(MethodParams):
    """Parameters of Fisher merging."""

    minimal_weight: float = parameter(
        1e-6,
        "ε, what every entry of the information has added to it before it is divided by the norm; "
        "experts are averaged where none has more, and an expert that has less everywhere (it is "
        "sure of everything) outweighs the others",
        low=1e-12,
        search=(1e-8, 1.0),
        log=True,
    )
    normalisation: str = choice_parameter(
        _NORM,
        (_NORM, _NONE),
        "what an expert's information is divided by: its norm over all merged matrices, with which "
        "experts weigh alike, or nothing",
    )


@dataclass(frozen=True)
class _MatrixWeights:
    """What weighs one matrix's entries."""

    information: MatrixStatistics
    scales: tuple[float, ...]
    """What each expert's information is multiplied by."""


class _Weights(Mapping[str, _MatrixWeights]):
    """The same by matrix."""

    def __init__(self, statistics: Statistics, scales: tuple[float, ...]) -> None:
        self._statistics = statistics
        self._scales = scales

    def __getitem__(self, name: str) -> _MatrixWeights:
        return _MatrixWeights(self._statistics[name], self._scales)

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics)

    def __len__(self) -> int:
        return len(self._statistics)


def _prepare(vectors: TaskVectors, params: FisherParams, evidence: Evidence) -> _Weights:
    """The inverse norms of the experts' information, or ones; every value is read and checked."""
    statistics = Statistics(vectors, evidence, Need.FISHER)
    squares = torch.zeros(len(vectors), dtype=torch.float64, device="cpu")
    for name in vectors.names:
        for number in range(len(vectors)):
            squares[number] += task_norms(statistics[name][number].unsqueeze(0))[0] ** 2
    scales = (squares.sqrt() + params.minimal_weight).reciprocal()
    if params.normalisation == _NONE:
        scales = torch.ones_like(scales)
    return _Weights(statistics, tuple(scales.tolist()))


def _combine(tau: Tensor, params: FisherParams, weights: _MatrixWeights) -> Tensor:
    """Σ_i w_i τ_i / Σ_i w_i (Matena and Raffel, equation 4), where w_i = c_i (F_i + minimum)."""
    weighted = tau.new_zeros(tau.shape[1:])  # (m, n)
    total = tau.new_zeros(tau.shape[1:])
    for number, scale in enumerate(weights.scales):
        information = weights.information[number].to(tau.device)
        weight = (information + params.minimal_weight).mul_(scale)
        weighted.addcmul_(weight, tau[number])
        total.add_(weight)
    return weighted.div_(total)


fisher = Method(
    name="fisher",
    title="Fisher merging",
    source="Matena and Raffel, NeurIPS 2022 (arXiv 2111.09832), section 3",
    params=FisherParams,
    combine=_combine,
    prepare=_prepare,
    needs=Need.FISHER,
    cost=lambda shape, experts, _params: Cost(bytes=4 * math.prod(shape) * 8 * experts),
)
