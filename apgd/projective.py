"""The maths of adaptive projective gradient descent (APGD): tensors in, tensors out.

Source: Wei et al., "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
ICML 2025 (arXiv 2501.01230), algorithm 1. Everything here is about one weight matrix of shape
(m, n) and its N task vectors tau (N, m, n); r = min(m, n). Layers do not depend on each other.

The gap loss is quadratic in the modification vector Δ: with Λ = Σ_j λ_j, row ρ of task i leaves the
residual e_iρ = a_iρ − Λ τ_iρ·Δ_ρ, where a_iρ = τ_iρ·(τ_iρ − Σ_j λ_j τ_jρ) is constant. So its
gradient is −2Λ Σ_i e_iρ τ_iρ: two products with the task vectors, and no autograd.
`apgd.fused` has the two solvers at their fastest on a CPU; these here run on any device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from apgd.lanes import lanes
from apgd.strips import by_strips, strips, sums_by_strips
from apgd.subspaces import leading_left_singular_vectors

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
SVD_BYTES = 2**28
"""Memory for decompositions side by side."""

_PART = 2**18


def task_norms(
    tau: Tensor,  # (N, m, n)
) -> Tensor:  # (N,), float64
    """‖τ_i‖_F."""
    return sums_by_strips(tau, lambda part, _rows: part.double().square().sum(dim=(1, 2))).sqrt()


def task_aware_coefficients(
    tau: Tensor,  # (N, m, n)
    eta: float,
) -> Tensor:  # (N,)
    """λ_i = η / ‖τ_i‖_F, the task-aware merging coefficients; 0 for a zero task vector."""
    norms = task_norms(tau)
    coefficients: Tensor = torch.where(norms > 0, eta / norms, 0.0).to(tau.dtype)
    return coefficients


def decompositions_at_once(rank: int) -> int:
    """How many fit into the memory set aside for them: Gram matrix and what LAPACK needs."""
    return max(1, SVD_BYTES // (24 * rank**2))


def shared_subspace(
    tau: Tensor,  # (N, m, n)
    basis_size: int,  # k of every task vector
    shared_basis_size: int,  # k of the subspace
) -> Tensor:  # (m, at most shared_basis_size), orthonormal columns
    """U, a basis of the subspace that the task vectors share.

    The leading left singular vectors of every τ_i side by side, and of that matrix the leading left
    singular vectors again.
    """
    return shared_of(task_bases(tau, basis_size), shared_basis_size)


def task_bases(
    tau: Tensor,  # (N, m, n)
    basis_size: int,
) -> list[Tensor]:  # N times (m, at most basis_size), orthonormal columns
    """V_i, the leading left singular vectors of every task vector."""
    bases = [tau.new_empty(0)] * len(tau)

    def decompose(i: int) -> None:
        bases[i] = leading_left_singular_vectors(tau[i], basis_size)

    with lanes(most=decompositions_at_once(min(tau.shape[1:]))) as each:
        each(decompose, range(len(tau)))
    return bases


def shared_of(
    bases: list[Tensor],  # N times (m, k)
    shared_basis_size: int,
) -> Tensor:  # (m, at most shared_basis_size), orthonormal columns
    """U, the leading left singular vectors of all bases side by side."""
    with lanes():
        return leading_left_singular_vectors(
            torch.cat(bases, dim=1),  # (m, at most N·k)
            shared_basis_size,
        )


def residual_constants(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
) -> Tensor:  # (N, m)
    """a_iρ = τ_iρ·(τ_iρ − Σ_j λ_j τ_jρ), the residuals of Δ = 0."""
    constants = tau.new_empty(tau.shape[:2])

    def fill(rows: slice) -> None:
        part = tau[:, rows]
        constants[:, rows] = (part * (part - _weighted_sum(coefficients, part))).sum(dim=2)

    with lanes() as each:
        each(fill, strips(tau))
    return constants


def gap_loss(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    modification: Tensor,  # (m, n)
) -> float:
    """L(Δ) = Σ_i Σ_rows ( Σ_cols τ_i ⊙ (τ_i − Σ_j λ_j (τ_j + Δ)) )²."""

    def of(part: Tensor, rows: slice) -> Tensor:
        merged = _weighted_sum(coefficients, part) + coefficients.sum() * modification[rows]
        gaps = (part * (part - merged)).sum(dim=2)  # (N, rows)
        return gaps.double().square().sum()

    return float(sums_by_strips(tau, of))


def _weighted_sum(
    weights: Tensor,  # (N,)
    tau: Tensor,  # (N, m, n)
) -> Tensor:  # (m, n)
    return torch.einsum("i,imn->mn", weights, tau)


class Descent:
    """Adam on L from Δ = 0, with the gradient's part in span(U) taken out; it can be continued.

    Steps do not depend on how they are divided: 100 and then 300 more are 400.

    Args:
        tau: the task vectors, (N, m, n).
        coefficients: λ, (N,).
        subspace: U, (m, k).
        learning_rate: Adam's.
    """

    def __init__(
        self, tau: Tensor, coefficients: Tensor, subspace: Tensor, learning_rate: float
    ) -> None:
        self._tau, self._subspace, self._learning_rate = tau, subspace, learning_rate
        self._constants = residual_constants(tau, coefficients)  # (N, m): a
        self._total = coefficients.sum()  # Λ
        self.delta = torch.zeros_like(tau[0])
        """Δ after the steps so far, (m, n); later steps change it in place."""
        self._mean, self._square = torch.zeros_like(self.delta), torch.zeros_like(self.delta)
        self.iterations = 0
        """The steps so far."""

    def advance(self, iterations: int) -> None:
        """Go on up to so many steps in all; nothing is undone where there were more."""
        for step in range(self.iterations + 1, iterations + 1):
            products = row_products(self._tau, self.delta)
            residuals = self._constants - self._total * products  # (N, m): e
            gradient = row_combinations(-2 * self._total * residuals, self._tau)  # (m, n)
            gradient -= self._subspace @ (self._subspace.T @ gradient)  # G − U Uᵀ G
            rate = self._learning_rate
            adam_step(self.delta, self._mean, self._square, gradient, step, rate)
        self.iterations = max(self.iterations, iterations)


def modification_vector(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k): U
    iterations: int,
    learning_rate: float,
) -> Tensor:  # (m, n)
    """Δ after `iterations` steps of Adam on L with the gradient's part in span(U) taken out."""
    descent = Descent(tau, coefficients, subspace, learning_rate)
    descent.advance(iterations)
    return descent.delta


def adam_step(
    variable: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    step: int,  # from 1
    learning_rate: float,
) -> None:
    """One step of Adam, in place; `mean` and `square` are its moments, zero before the first."""
    beta1, beta2 = ADAM_BETAS
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (square / (1 - beta2**step)).sqrt_().add_(ADAM_EPS)
    variable.addcdiv_(mean, denominator, value=-learning_rate / (1 - beta1**step))


def modification_vectors(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k): U
    iterations: int,
    learning_rate: float,
) -> Tensor:  # (N, m, n)
    """One Δ_i per task after `iterations` steps of Adam on them all, gradients projected as above.

    The gap loss of Σ_j λ_j (τ_j + Δ_j) depends on the Δ_j through S = Σ_j λ_j Δ_j alone: its
    gradient in Δ_j is λ_j G with G = −2 Σ_i e_iρ τ_iρ and e_iρ = a_iρ − τ_iρ·S_ρ. Adam's two means
    for Δ_j are λ_j and λ_j² times those for G, so one pair of them serves all tasks, and the step
    of Δ_j is −α m̂ / (√v̂ + ε / λ_j). Tasks differ only by that ε, which counts, as G is small.
    """
    constants = residual_constants(tau, coefficients)
    deltas = torch.zeros_like(tau)
    total = torch.zeros_like(tau[0])  # S
    mean, square = torch.zeros_like(total), torch.zeros_like(total)
    offsets = (ADAM_EPS / coefficients).tolist()  # infinite for a zero task vector: no step
    beta1, beta2 = ADAM_BETAS
    for step in range(1, iterations + 1):
        residuals = constants - row_products(tau, total)  # (N, m): e
        gradient = row_combinations(-2 * residuals, tau)  # (m, n)
        gradient -= subspace @ (subspace.T @ gradient)  # G − U Uᵀ G
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2**step)).sqrt_()
        for delta, offset in zip(deltas, offsets, strict=True):
            delta.addcdiv_(mean, root + offset, value=-learning_rate / (1 - beta1**step))
        total = _weighted_sum(coefficients, deltas)
    return deltas


def distributed(
    modification: Tensor,  # (m, n): Δ
    coefficients: Tensor,  # (N,)
) -> Tensor:  # (N, m, n)
    """One Δ_i per task that together do what one Δ does, Σ_j λ_j Δ_j = ΛΔ, at the smallest norm.

    Those are Δ_i = λ_i ΛΔ / Σ_j λ_j².
    """
    squares = coefficients.square().sum()
    shares = torch.where(squares > 0, coefficients * (coefficients.sum() / squares), 0.0)
    return shares.to(modification.dtype).view(-1, 1, 1) * modification


def exact_modification_vector(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k): U
    tolerance: float,
    most_passes: int,
) -> Tensor:  # (m, n)
    """The Δ of smallest norm among those that minimise L under UᵀΔ = 0.

    It ends where the projected gradient is at most `tolerance` times that of Δ = 0, or after
    `most_passes` passes over the task vectors.
    """

    def transposed(residuals: Tensor) -> Tensor:
        combined = row_combinations(residuals, tau)
        combined -= subspace @ (subspace.T @ combined)
        return combined

    if subspace.shape[1] == subspace.shape[0]:  # U spans everything
        return torch.zeros_like(tau[0])
    scaled = conjugate_gradients(
        lambda direction: row_products(tau, direction),
        transposed,
        residual_constants(tau, coefficients),
        tolerance,
        most_passes,
    )
    return unscaled(scaled, coefficients)


def unscaled(
    scaled: Tensor,  # (m, n): ΛΔ
    coefficients: Tensor,  # (N,)
) -> Tensor:  # (m, n)
    """Δ from ΛΔ, which is what a_iρ = τ_iρ·(ΛΔ)_ρ is solved for; 0 where Λ is."""
    total = coefficients.sum()
    return scaled.div_(total) if total > 0 else scaled


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],  # A
    apply_transposed: Callable[[Tensor], Tensor],  # Aᵀ
    target: Tensor,  # b
    tolerance: float,
    most_passes: int,
) -> Tensor:
    """The x of smallest norm that minimises ‖A x − b‖, by conjugate gradients (CGLS).

    It ends where ‖Aᵀ(b − A x)‖ ≤ tolerance · ‖Aᵀ b‖, also for equations that contradict each other;
    or where rounding leaves nothing to follow; or after `most_passes`.
    """
    residual = target.clone()
    gradient = apply_transposed(residual)
    solution, direction = torch.zeros_like(gradient), gradient.clone()
    size = first = _squared_norm(gradient)
    for _ in range(most_passes):
        if size <= tolerance**2 * first:
            break
        product = apply(direction)
        curvature = _squared_norm(product)
        if curvature == 0.0:
            break
        step = size / curvature
        solution.add_(direction, alpha=step)
        residual.sub_(product, alpha=step)
        gradient = apply_transposed(residual)
        before, size = size, _squared_norm(gradient)
        direction.mul_(size / before).add_(gradient)
    return solution


def _squared_norm(tensor: Tensor) -> float:
    # A part at a time: the whole of it in float64 would be two more matrices.
    flat = tensor.reshape(-1)
    parts = [flat[i : i + _PART].double().square().sum() for i in range(0, len(flat), _PART)]
    return float(torch.stack(parts).sum())


def row_products(
    tau: Tensor,  # (N, m, n)
    matrix: Tensor,  # (m, n)
) -> Tensor:  # (N, m)
    """τ_iρ·X_ρ for every task i and row ρ."""
    return torch.bmm(tau.transpose(0, 1), matrix.unsqueeze(2)).squeeze(2).T


def row_combinations(
    weights: Tensor,  # (N, m)
    tau: Tensor,  # (N, m, n)
) -> Tensor:  # (m, n)
    """Σ_i w_iρ τ_iρ for every row ρ."""
    return torch.bmm(weights.T.unsqueeze(1), tau.transpose(0, 1)).squeeze(1)


def masked_sum(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    modification: Tensor,  # (m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (m, n)
    """θ − θ_0 = Σ_i λ_i M_i ⊙ (τ_i + Δ), where M_i keeps the entries with |τ_i| ≥ threshold_i."""

    def of(part: Tensor, rows: slice) -> Tensor:
        weights = kept(part, thresholds) * coefficients.view(-1, 1, 1)  # λ_i M_i
        return (weights * (part + modification[rows])).sum(dim=0)

    return by_strips(tau, of)


def kept(
    tau: Tensor,  # (N, m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (N, m, n), bool
    """M_i, which keeps the entries with |τ_i| ≥ threshold_i."""
    return tau.abs() >= thresholds.to(tau.device).view(-1, 1, 1)


def kept_shares(
    tau: Tensor,  # (N, m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (N,), float64
    """The share of each task vector's entries that its M_i keeps."""
    counts = sums_by_strips(tau, lambda part, _rows: kept(part, thresholds).sum(dim=(1, 2)))
    return counts / tau[0].numel()
