"""From whole weights back to factors: the best change of a given rank for each matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.checkpoints import Weights
from apgd.errors import InputError
from apgd.lora.adapters import Factors
from apgd.subspaces import leading_left_singular_vectors


@dataclass(frozen=True)
class Extracted:
    """Factors, and how far they are from what they stand for."""

    factors: dict[str, Factors]
    """By name of the changed parameters."""
    errors: dict[str, float]
    """‖ΔW − B A‖_F / ‖ΔW‖_F by name."""
    error: float
    """The same over all changed parameters together."""


def truncated(change: Tensor, rank: int) -> tuple[Factors, float]:
    """The closest B A of a rank (Eckart and Young, 1936), and ‖ΔW − B A‖_F.

    With the leading left singular vectors U of ΔW it is U (Uᵀ ΔW); the singular values are shared
    evenly between the factors, which float32 then holds best.

    Args:
        change: ΔW, (m, n).
        rank: r, at least 1; fewer are taken where ΔW has no more.
    """
    vectors = leading_left_singular_vectors(change, rank).double()  # (m, r)
    rows = vectors.T @ change.double()  # (r, n)
    roots = rows.norm(dim=1, keepdim=True).sqrt()  # √σ
    a, b = (rows / roots).float(), (vectors * roots.T).float()
    return Factors(a.cpu(), b.cpu()), float((change.double() - b.double() @ a.double()).norm())


def extract(
    base: Weights,
    tuned: Weights,
    rank: int,
    is_changed: Callable[[str, Tensor], bool],
    *,
    device: str = "cpu",
) -> Extracted:
    """A LoRA of what tuning or merging changed.

    Args:
        base: θ_0.
        tuned: the same model, changed.
        rank: of every matrix's change, at least 1.
        is_changed: which parameters the adapter may change: weights of linear layers. It is asked
            with a name and a tensor without values.
        device: where to compute.

    Raises:
        InputError: where the two are not the same model, nothing differs, or something differs that
            the adapter may not change.
    """
    if rank < 1:
        raise InputError(f"the rank must be at least 1, but got {rank}")
    if base.names() != tuned.names():
        odd = sorted(set(base.names()) ^ set(tuned.names()))
        raise InputError(
            f"{base.label} and {tuned.label} must have the same parameters, but {odd[0]} is only "
            f"in one of them"
        )
    factors: dict[str, Factors] = {}
    errors: dict[str, float] = {}
    missed, whole = 0.0, 0.0
    for name in base.names():
        if base.shape(name) != tuned.shape(name):
            raise InputError(
                f"{name} of {tuned.label} must have the base's shape {base.shape(name)}, but has "
                f"{tuned.shape(name)}"
            )
        old, new = base[name], tuned[name]
        if torch.equal(old, new.to(old.dtype)):
            continue
        like = torch.empty(old.shape, dtype=old.dtype, device="meta")
        if old.ndim != 2 or not is_changed(name, like):
            raise InputError(
                f"an adapter must hold all that differs from the base, but {name} of {tuned.label} "
                f"differs too, and is not among the matrices that it may change"
            )
        change = new.to(device, torch.float32) - old.to(device, torch.float32)
        if not bool(change.isfinite().all()):
            raise InputError(f"weights must be finite, but {name} of {tuned.label} is not")
        factors[name], distance = truncated(change, rank)
        size = float(change.double().norm())
        errors[name] = distance / size
        missed, whole = missed + distance**2, whole + size**2
    if not factors:
        raise InputError(f"{tuned.label} must differ from {base.label}, but it does not")
    return Extracted(factors, errors, math.sqrt(missed / whole))
