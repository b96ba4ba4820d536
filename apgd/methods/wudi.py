"""WUDI-Merging: a merged task vector that interferes little with any task's inputs.

Task vectors stand in for their tasks' inputs, and what is minimised over X (m, n) is
L(X) = Σ_i ‖(X − τ_i) τ_iᵀ‖² / ‖τ_i‖², from S = Σ_i τ_i on. With A_i = τ_iᵀτ_i / ‖τ_i‖² (n, n),
A = Σ_i A_i, and P = Σ_i (S − τ_i) A_i, the gradient at X = S + D is 2 (P + D A): one product per
step, however many tasks there are, and no autograd. P is made of differences, so that it is exactly
zero where nothing interferes. Rows of X do not depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.eigenvectors import leading_eigenvectors
from apgd.lanes import lanes
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    choice_parameter,
    coefficient_parameter,
    learning_rate_parameter,
    parameter,
    read_once,
)
from apgd.projective import adam_step, task_norms
from apgd.strips import by_strips
from apgd.subspaces import real_directions

_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class WudiParams(MethodParams):
    """Parameters of WUDI-Merging."""

    coefficient: float = coefficient_parameter(1.0, "the merged task vector", (0.2, 5.0))
    iterations: int = parameter(
        300, "Adam steps on the merged task vector", low=1, search=(10, 400), log=True
    )
    learning_rate: float = learning_rate_parameter(1e-5, "Adam's learning rate", (1e-6, 1e-3))
    solver: str = choice_parameter(
        "adam",
        ("adam", "exact"),
        "how it is found: the paper's Adam steps, or the exact minimiser nearest to their start",
    )


@dataclass(frozen=True)
class _Quadratic:
    """L(S + D) = L(S) + Σ D ⊙ (2 P + D A)."""

    start: Tensor
    """S, (m, n)."""
    pull: Tensor
    """P, (m, n): half of the gradient at S."""
    factors: tuple[Tensor, ...]
    """Matrices whose product is A, (n, n)."""
    loss: float
    """L(S)."""

    def change(self, moved: Tensor, rows: slice) -> float:  # D in these rows
        """L(S + D) − L(S), the share of these rows."""
        slope = _product(moved, self.factors).add_(self.pull[rows], alpha=2)
        return float((moved * slope).double().sum())


def _combine(tau: Tensor, params: WudiParams, _prepared: None) -> Combined:
    exact = params.solver == "exact"
    quadratic = _interference(tau, torch.float64 if exact else torch.float32, stacked=not exact)
    moved = _minimiser(quadratic) if exact else None
    blocks = _blocks(tau)
    merged, changes = torch.empty_like(quadratic.start), [0.0] * len(blocks)

    def fill(number: int) -> None:
        rows = blocks[number]
        step = _descend(quadratic, rows, params) if moved is None else moved[rows]
        changes[number] = quadratic.change(step, rows)
        merged[rows] = params.coefficient * (quadratic.start[rows] + step)

    with lanes() as each:
        each(fill, range(len(blocks)))
    after = max(0.0, quadratic.loss + sum(changes))
    return Combined(merged, {"loss_before": quadratic.loss, "loss_after": after})


def _blocks(matrices: Tensor) -> list[slice]:  # of (…, rows, columns)
    """Ranges of rows that are worked on side by side; on a GPU, all of them at once."""
    count = matrices.shape[-2]
    size = _ROWS if matrices.device.type == "cpu" else max(1, count)
    return [slice(low, min(low + size, count)) for low in range(0, count, size)]


def _product(matrix: Tensor, factors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.mm, factors, matrix)


def _is_wide(shape: tuple[int, int], tasks: int) -> bool:
    """Whether two products with all task vectors are less work than one with A."""
    return shape[1] > 2 * tasks * shape[0]


def _interference(
    tau: Tensor,  # (N, m, n)
    dtype: torch.dtype,
    *,
    stacked: bool,  # whether A may be left as the product of all task vectors
) -> _Quadratic:
    (m, n), norms = tau.shape[1:], task_norms(tau).tolist()
    tasks = [i for i, norm in enumerate(norms) if norm > 0]
    stacked = stacked and _is_wide((m, n), len(tasks))
    start = by_strips(tau, lambda part, _rows: part.sum(dim=0))
    pull = torch.zeros(m, n, dtype=dtype, device=tau.device)
    units = pull.new_empty(len(tasks) * m, n) if stacked else pull.new_empty(m, n)
    gram = pull.new_zeros(0 if stacked else n, n)
    own = torch.empty_like(gram) if n < 2 * m else None
    losses: list[float] = []

    for number, i in enumerate(tasks):
        unit = units[number * m : number * m + m] if stacked else units
        torch.div(tau[i], norms[i], out=unit)
        losses += _add_task(tau[i], unit, start, pull, gram, own)
    return _Quadratic(start, pull, (units.T, units) if stacked else (gram,), sum(losses))


def _add_task(
    tau: Tensor,  # (m, n): τ_i
    unit: Tensor,  # (m, n): τ_i / ‖τ_i‖
    start: Tensor,  # (m, n): S
    pull: Tensor,  # (m, n): P, to which its part is added
    gram: Tensor,  # (n, n) or (0, n): A, to which A_i is added
    own: Tensor | None,  # (n, n): for A_i, where a product with it is less work than two with τ_i
) -> list[float]:
    """Its loss at S, in parts."""
    blocks = _blocks(pull)
    losses = [0.0] * len(blocks)

    def add_gram(rows: slice) -> None:
        if own is None:
            gram[rows].addmm_(unit[:, rows].T, unit)
        else:
            torch.mm(unit[:, rows].T, unit, out=own[rows])
            gram[rows] += own[rows]

    def add_pull(number: int) -> None:
        rows = blocks[number]
        gap = (start[rows] - tau[rows]).to(pull.dtype)
        part = _product(gap, (unit.T, unit) if own is None else (own,))
        losses[number] = float((gap * part).double().sum())
        pull[rows] += part

    with lanes() as each:
        each(add_gram, _blocks(gram))
        each(add_pull, range(len(blocks)))
    return losses


def _descend(quadratic: _Quadratic, rows: slice, params: WudiParams) -> Tensor:
    """D in these rows, after all steps of Adam."""
    pull = quadratic.pull[rows]
    moved, mean, square = torch.zeros_like(pull), torch.zeros_like(pull), torch.zeros_like(pull)
    for step in range(1, params.iterations + 1):
        gradient = _product(moved, quadratic.factors).add_(pull).mul_(2)
        adam_step(moved, mean, square, gradient, step, params.learning_rate)
    return moved


def _minimiser(quadratic: _Quadratic) -> Tensor:  # (m, n), float64
    """D = −P A⁺, the smallest of those at which the gradient is zero.

    Directions of the inputs in which A is zero up to rounding matter to no task; D has no part in
    them.
    """
    (gram,) = quadratic.factors
    m, n = quadratic.pull.shape
    with lanes():
        squares, directions = leading_eigenvectors(gram.clone(), n)
        real = real_directions(squares, max(m, n))
        directions = directions[:, :real]
        return (quadratic.pull @ directions).div_(-squares[:real]) @ directions.T


def _holds(shape: tuple[int, int], experts: int) -> int:
    # Adam: τ, S, P, τ_i / ‖τ_i‖, A_i and A, or all τ_i / ‖τ_i‖ once more; and the result.
    # Exact: the same and D in float64; and A once more, with eigenvectors twice.
    (m, n), wide = shape, _is_wide(shape, experts)
    adam = m * n * (2 * experts + 3) if wide else m * n * (experts + 4) + 2 * n**2
    exact = m * n * (experts + 8) + 8 * n**2
    return 4 * max(adam, exact)


def _cost(shape: tuple[int, int], experts: int, params: WudiParams) -> Cost:
    (m, n), read = shape, read_once(shape, experts, params) * 3
    one_task = 2 * m * n * (2 * n if n < 2 * m else n + 2 * m)
    if params.solver == "exact":  # float64 takes twice as long
        return read + Cost(flops=2 * one_task * experts + 12 * m * n**2 + 16 * n**3)
    product = 4 * m * n * experts * m if _is_wide(shape, experts) else 2 * m * n * n
    one_step = Cost(flops=product, bytes=4 * m * n * 5)
    return read + Cost(flops=one_task * experts) + one_step * params.iterations


wudi = Method(
    name="wudi",
    title="WUDI-Merging",
    source="Cheng et al., ICML 2025 (arXiv 2503.08099), WUDI-Merging",
    params=WudiParams,
    combine=_combine,
    holds=_holds,
    cost=_cost,
)
