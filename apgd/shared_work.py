"""What merges of the same task vectors have in common, found once and kept.

A search over η, k, iterations and keep ratios repeats most of its work: the leading singular
vectors depend on none of them, bases of fewer are slices of those of more, and thresholds depend on
the keep ratio alone.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from apgd.projective import shared_of, task_bases
from apgd.task_vectors import TaskVectors

Bases: TypeAlias = Mapping[str, Sequence[Tensor]]
"""By matrix: of every expert, leading left singular vectors (m, at most k), largest first."""

_SUBSPACES = 4  # sizes of which the subspaces of all matrices are kept


class SharedWork:
    """Task vectors with what was found about them.

    Args:
        vectors: the task vectors.
        bases: their leading left singular vectors, where they are known, as many as will be asked
            for; the others are computed when they are first needed.
    """

    def __init__(self, vectors: TaskVectors, bases: Bases | None = None) -> None:
        self.vectors = vectors
        """The task vectors."""
        self._bases = dict(bases or {})
        self._thresholds: dict[float, Tensor] = {}
        self._subspaces: OrderedDict[tuple[int, int], dict[str, Tensor]] = OrderedDict()

    def bases(self, name: str) -> Sequence[Tensor]:
        """Left singular vectors of a matrix's task vectors, (m, at most r) for every expert."""
        if name not in self._bases:
            tau = self.vectors[name]
            self._bases[name] = task_bases(tau, min(tau.shape[1:]))
        return self._bases[name]

    def subspace(self, name: str, basis_size: int, shared_basis_size: int) -> Tensor:
        """U of a matrix, (m, at most `shared_basis_size`); see `projective.shared_subspace`."""
        size = (basis_size, shared_basis_size)
        found = self._subspaces.setdefault(size, {})
        self._subspaces.move_to_end(size)
        while len(self._subspaces) > _SUBSPACES:
            self._subspaces.popitem(last=False)
        if name not in found:
            parts = [basis[:, :basis_size].to(self.vectors.device) for basis in self.bases(name)]
            found[name] = shared_of(parts, shared_basis_size)
        return found[name]

    def magnitude_thresholds(self, keep_ratio: float) -> Tensor:
        """`TaskVectors.magnitude_thresholds`, (N,)."""
        if keep_ratio not in self._thresholds:
            self._thresholds[keep_ratio] = self.vectors.magnitude_thresholds(keep_ratio)
        return self._thresholds[keep_ratio]
