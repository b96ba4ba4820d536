"""How task vectors and merges lie to each other: lengths, angles and subspaces, matrix by matrix.

Sums are kept and not ratios, so that figures of a whole model follow from those of its matrices:
inner products and squared norms of several matrices add up. Subspaces are those of APGD at the
paper's size: k = ⌊r/N⌋ leading left singular vectors of every task vector, and U, the k leading
ones of these side by side (Wei et al., ICML 2025, algorithm 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.methods import MethodParams
from apgd.methods._apgd import ApgdParams, default_basis_size, modification, modifications
from apgd.methods._plug import PluggedParams
from apgd.methods.doge_am import DogeAmParams
from apgd.projective import shared_of, task_bases
from apgd.strips import sums_by_strips


@dataclass(frozen=True, kw_only=True)
class ExpertLayer:
    """The task vectors of one matrix among themselves."""

    name: str
    shape: tuple[int, int]
    products: tuple[tuple[float, ...], ...]
    """⟨τ_i, τ_j⟩, (N, N)."""
    shared_size: int
    """Dimension of U."""
    shared: tuple[float, ...]
    """‖Uᵀ τ_i‖², (N,)."""
    overlaps: tuple[tuple[float, ...], ...]
    """‖V_iᵀ V_j‖² / k, (N, N): the share that the leading subspaces of two tasks have in common;
    1 for equal ones, about k/m for random ones."""


@dataclass(frozen=True, kw_only=True)
class DeltaLayer:
    """A merge's change of one matrix, δ = θ − θ_0, beside the task vectors."""

    name: str
    square: float
    """‖δ‖²."""
    products: tuple[float, ...]
    """⟨δ, τ_i⟩, (N,)."""
    shared: float
    """‖Uᵀ δ‖²."""
    modification: float | None
    """‖Δ‖² of APGD's modification vector, the mean where every task has its own; None for a method
    without it."""


def expert_layer(
    name: str,
    tau: Tensor,  # (N, m, n)
) -> ExpertLayer:
    """Measure the task vectors of one matrix."""
    bases = task_bases(tau, _basis_size(tau))
    subspace = shared_of(bases, _basis_size(tau))
    return ExpertLayer(
        name=name,
        shape=(tau.shape[1], tau.shape[2]),
        products=_rows(sums_by_strips(tau, lambda part, _rows: _flat(part) @ _flat(part).T)),
        shared_size=subspace.shape[1],
        shared=tuple(_inside(subspace, one) for one in tau),
        overlaps=tuple(tuple(_overlap(one, other) for other in bases) for one in bases),
    )


def delta_layer(
    name: str,
    tau: Tensor,  # (N, m, n)
    delta: Tensor,  # (m, n)
    params: MethodParams | None = None,
) -> DeltaLayer:
    """Measure a merge's change of one matrix.

    Args:
        name: of the matrix.
        tau: the experts' own task vectors.
        delta: θ − θ_0.
        params: the method's parameters, from which the modification vector is found again where
            the method has one.
    """
    subspace = shared_of(task_bases(tau, _basis_size(tau)), _basis_size(tau))

    def products(part: Tensor, rows: slice) -> Tensor:  # (N,)
        return _flat(part) @ delta[rows].reshape(-1).double()

    return DeltaLayer(
        name=name,
        square=_square(delta),
        products=tuple(sums_by_strips(tau, products).tolist()),
        shared=_inside(subspace, delta),
        modification=_modification(tau, params),
    )


@dataclass(frozen=True, kw_only=True)
class ExpertFigures:
    """Task vectors over one or several matrices."""

    norms: tuple[float, ...]
    """‖τ_i‖."""
    mean_norm: float
    """‖τ̄‖, the length of their mean."""
    cosine: float
    """Mean cosine over the pairs of tasks; 0 for one task."""
    shared: float
    """Share of the energy Σ_i ‖τ_i‖² that lies in U."""
    shared_by_chance: float
    """That share for a random subspace of U's size: k/m, weighted by energy."""
    overlap: float
    """Mean overlap of the leading subspaces over pairs of tasks, and over matrices."""


def expert_figures(layers: Sequence[ExpertLayer]) -> ExpertFigures:
    """Put matrices together."""
    count = len(layers[0].products)
    products = torch.tensor([layer.products for layer in layers], dtype=torch.float64).sum(dim=0)
    norms = products.diagonal().sqrt()
    energies = [sum(layer.products[i][i] for i in range(count)) for layer in layers]
    chance = sum(e * x.shared_size / x.shape[0] for e, x in zip(energies, layers, strict=True))
    scale = torch.outer(norms, norms)
    cosines = torch.where(scale > 0, products / scale, 0.0)
    return ExpertFigures(
        norms=tuple(norms.tolist()),
        mean_norm=math.sqrt(max(0.0, float(products.sum()))) / count,
        cosine=_between(cosines),
        shared=_ratio(sum(sum(layer.shared) for layer in layers), sum(energies)),
        shared_by_chance=_ratio(chance, sum(energies)),
        overlap=sum(_between(torch.tensor(layer.overlaps)) for layer in layers) / len(layers),
    )


@dataclass(frozen=True, kw_only=True)
class DeltaFigures:
    """A merge beside the task vectors, over one or several matrices."""

    size: float
    """‖δ‖ / ‖τ̄‖; 1 for weight averaging."""
    cosines: tuple[float, ...]
    """Cosine of δ and τ_i, by expert."""
    shared: float
    """Share of the energy ‖δ‖² that lies in U."""
    modification: float | None
    """‖Δ‖ relative to the root mean square of ‖τ_i‖; None for a method without Δ."""


def delta_figures(experts: Sequence[ExpertLayer], deltas: Sequence[DeltaLayer]) -> DeltaFigures:
    """Put matrices together; both are about the same ones, in the same order."""
    whole = expert_figures(experts)
    square = sum(layer.square for layer in deltas)
    dots = [sum(layer.products[i] for layer in deltas) for i in range(len(whole.norms))]
    squares = [layer.modification for layer in deltas if layer.modification is not None]
    mean_square = sum(norm**2 for norm in whole.norms) / len(whole.norms)
    return DeltaFigures(
        size=_ratio(math.sqrt(square), whole.mean_norm),
        cosines=tuple(
            _ratio(dot, math.sqrt(square) * norm)
            for dot, norm in zip(dots, whole.norms, strict=True)
        ),
        shared=_ratio(sum(layer.shared for layer in deltas), square),
        modification=_ratio(math.sqrt(sum(squares)), math.sqrt(mean_square)) if squares else None,
    )


def _flat(part: Tensor) -> Tensor:  # (N, rows, n) -> (N, rows · n), float64
    return part.reshape(len(part), -1).double()


def _basis_size(tau: Tensor) -> int:
    return default_basis_size(min(tau.shape[1:]), len(tau))


def _modification(tau: Tensor, params: MethodParams | None) -> float | None:
    if isinstance(params, DogeAmParams):
        return _square(modifications(tau, params)) / len(tau)
    apgd = params.apgd if isinstance(params, PluggedParams) else params
    return _square(modification(tau, apgd).delta) if isinstance(apgd, ApgdParams) else None


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _inside(subspace: Tensor, matrix: Tensor) -> float:
    return _square(subspace.T @ matrix)


def _overlap(one: Tensor, other: Tensor) -> float:
    most = min(one.shape[1], other.shape[1])
    return _square(one.T @ other) / most if most else 0.0


def _between(table: Tensor) -> float:
    """Mean over what is off the diagonal of (N, N)."""
    count = len(table)
    if count < 2:
        return 0.0
    return float(table.sum() - table.diagonal().sum()) / (count * (count - 1))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _rows(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
