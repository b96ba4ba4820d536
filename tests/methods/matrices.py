"""Task vectors of one matrix for tests."""

import torch
from torch import Tensor

from apgd.methods import Combined, Value, methods


def random(count: int, rows: int, columns: int, seed: int = 0) -> Tensor:  # (N, m, n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, columns, generator=generator)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Orthonormal columns."""
    return torch.linalg.qr(random(1, rows, columns, seed)[0].double()).Q.float()


def merged(name: str, tau: Tensor, **values: Value) -> Tensor:  # (m, n)
    """What a method makes of one matrix's task vectors."""
    return combined(name, tau, **values).delta


def combined(name: str, tau: Tensor, **values: Value) -> Combined:
    method = methods[name]
    found = method.combine(tau, method.parse(values), None)
    assert isinstance(found, Combined)
    return found


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two matrices differ by little of the second's norm."""
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())
