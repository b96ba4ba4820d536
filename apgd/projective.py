"""The maths of adaptive projective gradient descent (APGD): tensors in, tensors out.

Source: Wei et al., "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
ICML 2025 (arXiv 2501.01230). Everything here is about one weight matrix of shape (m, n) and its N
task vectors tau (N, m, n); r = min(m, n). Layers do not depend on each other.
"""

import torch
from torch import Tensor

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


def task_aware_coefficients(
    tau: Tensor,  # (N, m, n)
    eta: float,
) -> Tensor:  # (N,)
    """λ_i = η / ‖τ_i‖_F, the task-aware merging coefficients; 0 for a zero task vector."""
    norms = torch.linalg.vector_norm(tau.flatten(1), dim=1)
    coefficients: Tensor = torch.where(norms > 0, eta / norms, 0.0)
    return coefficients


def leading_left_singular_vectors(
    matrix: Tensor,  # (m, n)
    count: int,
) -> Tensor:  # (m, min(count, rank))
    """The left singular vectors of the `count` largest singular values, in descending order.

    They come from the Gram matrix of the smaller side, in float64 so that squaring the singular
    values costs no accuracy at float32. Directions whose singular value is zero up to rounding are
    left out: they are arbitrary, and a subspace made of them would be too.
    """
    m, n = matrix.shape
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T if m <= n else wide.T @ wide)
    squares, vectors = squares.flip(0), vectors.flip(1)
    cutoff = squares[0] * (max(m, n) * torch.finfo(torch.float32).eps) ** 2
    rank = int((squares > cutoff).sum())
    leading: Tensor = vectors[:, : min(count, rank)]
    if m > n:
        # A v_i = σ_i u_i: orthogonal columns, which QR normalises without dividing by a small σ_i.
        leading = torch.linalg.qr(wide @ leading).Q
    return leading.to(matrix.dtype)


def shared_subspace(
    tau: Tensor,  # (N, m, n)
    basis_size: int,  # k of every task vector
    shared_basis_size: int,  # k of the subspace
) -> Tensor:  # (m, at most shared_basis_size), orthonormal columns
    """U, a basis of the subspace that the task vectors share.

    The leading left singular vectors of every τ_i side by side, and of that matrix the leading left
    singular vectors again.
    """
    bases = [leading_left_singular_vectors(tau_i, basis_size) for tau_i in tau]
    side_by_side = torch.cat(bases, dim=1)  # (m, at most N·k)
    if side_by_side.shape[1] == 0:
        return side_by_side
    return leading_left_singular_vectors(side_by_side, shared_basis_size)


def gap_loss(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    modification: Tensor,  # (m, n)
) -> Tensor:  # ()
    """L(Δ) = Σ_i Σ_rows ( Σ_cols τ_i ⊙ (τ_i − Σ_j λ_j (τ_j + Δ)) )²."""
    merged = torch.einsum("i,imn->mn", coefficients, tau + modification)
    gaps = (tau * (tau - merged)).sum(dim=2)  # (N, m)
    return gaps.square().sum()


def modification_vector(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    subspace: Tensor,  # (m, k)
    iterations: int,
    learning_rate: float,
) -> Tensor:  # (m, n)
    """Δ after `iterations` steps of Adam on L with the gradient's part in span(U) taken out.

    L is quadratic: row ρ of task i leaves the residual e_iρ = a_iρ − Λ τ_iρ·Δ_ρ, with Λ = Σ_j λ_j
    and a_iρ = τ_iρ·(τ_iρ − Σ_j λ_j τ_jρ) constant. So the gradient, −2Λ Σ_i e_iρ τ_iρ, takes two
    products with the task vectors and no autograd.
    """
    rows = tau.transpose(0, 1).contiguous()  # (m, N, n)
    total = coefficients.sum()  # Λ
    merged = torch.einsum("i,imn->mn", coefficients, tau)  # (m, n)
    constant = torch.einsum("min,imn->mi", rows, tau - merged)  # (m, N): a
    delta = torch.zeros_like(merged)
    mean, square = torch.zeros_like(delta), torch.zeros_like(delta)
    beta1, beta2 = _ADAM_BETAS
    for step in range(1, iterations + 1):
        product = torch.linalg.vecdot(rows, delta.unsqueeze(1))  # (m, N): τ_iρ·Δ_ρ
        residual = constant - total * product  # (m, N): e
        gradient = torch.bmm((-2 * total * residual).unsqueeze(1), rows).squeeze(1)  # (m, n)
        gradient -= subspace @ (subspace.T @ gradient)  # G − U Uᵀ G
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt_().add_(_ADAM_EPS)
        delta.addcdiv_(mean, denominator, value=-learning_rate / (1 - beta1**step))
    return delta


def masked_sum(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
    modification: Tensor,  # (m, n)
    thresholds: Tensor,  # (N,)
) -> Tensor:  # (m, n)
    """θ − θ_0 = Σ_i λ_i M_i ⊙ (τ_i + Δ), where M_i keeps the entries with |τ_i| ≥ threshold_i."""
    weights = (tau.abs() >= thresholds.view(-1, 1, 1)) * coefficients.view(-1, 1, 1)  # λ_i M_i
    return (weights * (tau + modification)).sum(dim=0)
