"""APGD's solvers at their fastest on a CPU; the maths is that of `apgd.projective`.

Two things bound a step: reading the task vectors from memory, and the two thin products of the
projection. So a row of all task vectors, while it is in the cache, is used for the products τ_i·Δ
and for the gradient; and a strip of rows, while it is in the cache, goes into its share of UᵀG.
Strips depend on the shape alone, never on the number of threads, and neither do the results.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from apgd.lanes import Each, lanes
from apgd.projective import (
    ADAM_BETAS,
    ADAM_EPS,
    conjugate_gradients,
    residual_constants,
    unscaled,
)

_MOST_GROUPS = 8
_LEAST_ROWS = 192
_MOST_ROWS = 384
_COLUMNS = 512


class Descent:
    """The same as `projective.Descent`."""

    def __init__(
        self,
        tau: Tensor,  # (N, m, n)
        coefficients: Tensor,  # (N,)
        subspace: Tensor,  # (m, k)
        learning_rate: float,
    ) -> None:
        self._task_rows, self._subspace = _task_rows(tau), subspace
        self._learning_rate = learning_rate
        self._constants = residual_constants(tau, coefficients).T.contiguous()  # (m, N)
        self._total = coefficients.sum().numpy()[()]
        self.delta = tau.new_zeros(tau.shape[1:])
        self._mean, self._square = torch.zeros_like(self.delta), torch.zeros_like(self.delta)
        self.iterations = 0

    def advance(self, iterations: int) -> None:
        """Go on up to so many steps in all; nothing is undone where there were more."""
        if iterations <= self.iterations:
            return
        first, self.iterations = self.iterations + 1, iterations
        gradient = torch.empty_like(self.delta)

        def find_gradient(rows: slice) -> None:
            tensors = (self._task_rows, self._constants, self.delta, gradient)
            _gradient_rows(*(_array(tensor, rows) for tensor in tensors), self._total)

        def adam(step: int) -> Callable[[slice], None]:
            scalars = _adam_scalars(step, self._learning_rate, self._total.dtype.type)
            tensors = (self.delta, self._mean, self._square, gradient)

            def update(rows: slice) -> None:
                projection.remove(rows)
                _adam_rows(*(_array(tensor, rows) for tensor in tensors), *scalars)

            return update

        with lanes() as each:
            projection = _Projection(self._subspace, gradient, each)
            projection.collect(find_gradient)
            for step in range(first, iterations):
                projection.collect(adam(step), find_gradient)
            projection.in_strips(adam(iterations))


def modification_vector(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k)
    iterations: int,
    learning_rate: float,
) -> Tensor:  # (m, n)
    """The same as `projective.modification_vector`."""
    descent = Descent(tau, coefficients, subspace, learning_rate)
    descent.advance(iterations)
    return descent.delta


def modification_vectors(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k)
    iterations: int,
    learning_rate: float,
) -> Tensor:  # (N, m, n)
    """The same as `projective.modification_vectors`."""
    task_rows = _task_rows(tau)
    constants = residual_constants(tau, coefficients).T.contiguous()  # (m, N)
    one, weights = tau.new_ones(()).numpy()[()], coefficients.numpy()
    offsets = (ADAM_EPS / coefficients).numpy()
    deltas = torch.zeros_like(task_rows)  # (m, N, n)
    sums = tau.new_zeros(tau.shape[1:])  # S
    mean, square, gradient = torch.zeros_like(sums), torch.zeros_like(sums), sums.clone()

    def find_gradient(rows: slice) -> None:
        arrays = (_array(tensor, rows) for tensor in (task_rows, constants, sums, gradient))
        _gradient_rows(*arrays, one)

    def adam(step: int) -> Callable[[slice], None]:
        rate, correction, *betas, _eps = _adam_scalars(step, learning_rate, one.dtype.type)

        def update(rows: slice) -> None:
            projection.remove(rows)
            arrays = (_array(tensor, rows) for tensor in (deltas, sums, mean, square, gradient))
            _adam_task_rows(*arrays, weights, offsets, rate, correction, *betas)

        return update

    with lanes() as each:
        projection = _Projection(subspace, gradient, each)
        if iterations:
            projection.collect(find_gradient)
            for step in range(1, iterations):
                projection.collect(adam(step), find_gradient)
            projection.in_strips(adam(iterations))
    return deltas.transpose(0, 1)


def exact_modification_vector(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k)
    tolerance: float,
    most_passes: int,
) -> Tensor:  # (m, n)
    """The same as `projective.exact_modification_vector`."""
    if subspace.shape[1] == subspace.shape[0]:  # U spans everything
        return tau.new_zeros(tau.shape[1:])
    task_rows = _task_rows(tau)
    constants = residual_constants(tau, coefficients).T.contiguous()  # (m, N)
    gradient = tau.new_empty(tau.shape[1:])
    products = torch.empty_like(constants)

    with lanes() as each:
        projection = _Projection(subspace, gradient, each)

        def apply(direction: Tensor) -> Tensor:
            def fill(rows: slice) -> None:
                _product_rows(*(_array(t, rows) for t in (task_rows, direction, products)))

            projection.in_strips(fill)
            return products

        def apply_transposed(residuals: Tensor) -> Tensor:
            def fill(rows: slice) -> None:
                _combination_rows(*(_array(t, rows) for t in (task_rows, residuals, gradient)))

            projection.collect(fill)
            projection.in_strips(projection.remove)
            return gradient

        scaled = conjugate_gradients(apply, apply_transposed, constants, tolerance, most_passes)
    return unscaled(scaled, coefficients)


def _adam_scalars(
    step: int, learning_rate: float, number: Callable[[float], Any]
) -> tuple[Any, ...]:
    """Rate, correction, the betas each with its rest to 1, and epsilon, for a step of Adam."""
    beta1, beta2 = ADAM_BETAS
    scalars = (
        learning_rate / (1 - beta1**step), (1 - beta2**step) ** -0.5,
        beta1, 1 - beta1, beta2, 1 - beta2, ADAM_EPS,
    )  # fmt: skip
    return tuple(number(scalar) for scalar in scalars)


class _Projection:
    """G − U UᵀG, a strip of rows at a time.

    Strips are in groups, each of which sums its own share of UᵀG: as many groups as keep the shares
    together no larger than G.
    """

    def __init__(
        self,
        subspace: Tensor,  # (m, k): U
        gradient: Tensor,  # (m, n): G
        each: Each,
    ) -> None:
        m, k = subspace.shape
        groups = max(1, min(_MOST_GROUPS, m // max(1, k), m // _LEAST_ROWS))
        bounds = [m * i // groups for i in range(groups + 1)]
        self._groups = [
            [slice(i, min(i + _MOST_ROWS, high)) for i in range(low, high, _MOST_ROWS)]
            for low, high in pairwise(bounds)
        ]
        self._subspace, self._gradient, self._each = subspace, gradient, each
        self._shares = gradient.new_empty(groups, k, gradient.shape[1])
        self._shared = gradient.new_empty(k, gradient.shape[1])  # UᵀG

    def in_strips(self, *steps: Callable[[slice], None]) -> None:
        """Take these steps on every strip."""

        def work(group: list[slice]) -> None:
            for rows in group:
                for step in steps:
                    step(rows)

        self._each(work, self._groups)

    def collect(self, *steps: Callable[[slice], None]) -> None:
        """Take steps that leave a new G on every strip, and find its UᵀG."""

        def work(group: int) -> None:
            for number, rows in enumerate(self._groups[group]):
                for step in steps:
                    step(rows)
                share, part = self._shares[group], self._gradient[rows]
                share.addmm_(self._subspace[rows].T, part, beta=min(number, 1))

        def add_up(first: int) -> None:
            columns = slice(first, first + _COLUMNS)
            torch.sum(self._shares[:, :, columns], 0, out=self._shared[:, columns])

        self._each(work, range(len(self._groups)))
        self._each(add_up, range(0, self._shared.shape[1], _COLUMNS))

    def remove(self, rows: slice) -> None:
        """G − U UᵀG in these rows of G, in place."""
        self._gradient[rows].addmm_(self._subspace[rows], self._shared, alpha=-1)


def _task_rows(
    tau: Tensor,  # (N, m, n)
) -> Tensor:  # (m, N, n), contiguous: what TaskVectors hands out needs no copy
    return tau.transpose(0, 1).contiguous()


def _array(tensor: Tensor, rows: slice) -> np.ndarray:
    array: np.ndarray = tensor[rows].numpy()
    return array


# Sums may be reordered, so that they can be vectorised. Products are rounded before they are added:
# where experts cancel, the gradient is then exactly zero, as in torch; Adam, whose steps near zero
# are 1e4 times the gradient, would make something of the smallest rest.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "nsz"},
}
_compiled: Callable[[Callable[..., None]], Any] = njit(cache=True, **_OPTIONS)
# Part of each kernel that uses it: calls between kernels are optimised in one way when they are
# compiled and in another when they come from the cache, and the last bits differ.
_inlined: Callable[[Callable[..., None]], Any] = njit(inline="always", **_OPTIONS)


@_inlined
def _product_row(tau, vector, out):  # type: ignore[no-untyped-def]
    """out_i = τ_i·x: (N, n), (n,) -> (N,)."""
    for i in range(tau.shape[0]):
        row, total = tau[i], out.dtype.type(0)
        for column in range(row.shape[0]):
            total += row[column] * vector[column]
        out[i] = total


@_inlined
def _combination_row(tau, weights, out):  # type: ignore[no-untyped-def]
    """Out = Σ_i w_i τ_i: (N, n), (N,) -> (n,)."""
    out[:] = 0
    for i in range(tau.shape[0]):
        row, weight = tau[i], weights[i]
        for column in range(row.shape[0]):
            out[column] += weight * row[column]


@_compiled
def _product_rows(tau, matrix, out):  # type: ignore[no-untyped-def]
    for row in range(tau.shape[0]):
        _product_row(tau[row], matrix[row], out[row])


@_compiled
def _combination_rows(tau, weights, out):  # type: ignore[no-untyped-def]
    for row in range(tau.shape[0]):
        _combination_row(tau[row], weights[row], out[row])


@_compiled
def _gradient_rows(tau, constants, delta, gradient, total):  # type: ignore[no-untyped-def]
    """−2Λ Σ_i e_iρ τ_iρ, where e_iρ = a_iρ − Λ τ_iρ·Δ_ρ."""
    weights = np.empty(tau.shape[1], tau.dtype)
    for row in range(tau.shape[0]):
        _product_row(tau[row], delta[row], weights)
        for i in range(weights.shape[0]):
            residual = constants[row, i] - total * weights[i]
            weights[i] = -(total + total) * residual
        _combination_row(tau[row], weights, gradient[row])


@_compiled
def _adam_rows(  # type: ignore[no-untyped-def]
    delta, mean, square, gradient, rate, correction, beta1, rest1, beta2, rest2, eps
):
    """One step of Adam; rate and correction hold the bias corrections of this step."""
    for row in range(delta.shape[0]):
        d, m, s, g = delta[row], mean[row], square[row], gradient[row]
        for column in range(d.shape[0]):
            m[column] = beta1 * m[column] + rest1 * g[column]
            s[column] = beta2 * s[column] + rest2 * g[column] * g[column]
            d[column] -= rate * m[column] / (np.sqrt(s[column]) * correction + eps)


@_compiled
def _adam_task_rows(  # type: ignore[no-untyped-def]
    deltas, total, mean, square, gradient, weights, offsets, rate, correction,
    beta1, rest1, beta2, rest2,
):  # fmt: skip
    """One step of Adam for every task's Δ_i from the means that they share, and S = Σ λ_i Δ_i."""
    for row in range(total.shape[0]):
        m, s, g = mean[row], square[row], gradient[row]
        for column in range(m.shape[0]):
            m[column] = beta1 * m[column] + rest1 * g[column]
            s[column] = beta2 * s[column] + rest2 * g[column] * g[column]
            g[column] = np.sqrt(s[column]) * correction  # the gradient is not needed any more
        for i in range(weights.shape[0]):
            d, offset = deltas[row, i], offsets[i]
            for column in range(d.shape[0]):
                d[column] -= rate * m[column] / (g[column] + offset)
        _combination_row(deltas[row], weights, total[row])
