"""Training statistics as methods read them: one matrix, and one expert, at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from apgd.checkpoints import Weights, is_finite, open_weights
from apgd.errors import InputError
from apgd.evidence import Evidence, Need
from apgd.task_vectors import TaskVectors


class MatrixStatistics:
    """One matrix's statistic of every expert, in their order; each is read when asked for."""

    def __init__(self, sources: Sequence[Weights], name: str, need: Need) -> None:
        self._sources = sources
        self._name = name
        self._need = need

    def __len__(self) -> int:
        """N, the number of experts."""
        return len(self._sources)

    def __getitem__(self, number: int) -> Tensor:
        """The statistic of one expert, float32 on the CPU; not to be changed.

        Raises:
            InputError: where it holds NaN or infinite values, or negative means of squares.
        """
        source = self._sources[number]
        found = source[self._name].to(torch.float32)
        if not is_finite(found):
            raise InputError(
                f"statistics must be finite, but {self._name} of {source.label} holds NaN or "
                f"infinite values"
            )
        squares = found.diagonal() if self._need is Need.GRAM else found
        lowest = float(squares.min())
        if lowest < 0:
            raise InputError(
                f"means of squares must not be negative, but {self._name} of {source.label} holds "
                f"{lowest:g}"
            )
        return found


class Statistics(Mapping[str, MatrixStatistics]):
    """By merged matrix, the statistic of every expert; names and shapes are checked at once.

    Args:
        vectors: what is merged.
        evidence: has the statistics.
        need: which they are.

    Raises:
        InputError: where an expert or one of its matrices has none, or one of another shape.
    """

    def __init__(self, vectors: TaskVectors, evidence: Evidence, need: Need) -> None:
        given, asked = evidence.statistics, vectors.experts
        for names, others, what in (
            (asked, given, "be given for every expert, but those are missing of"),
            (given, asked, "belong to one of the experts, but these do not:"),
        ):
            odd = [name for name in names if name not in others]
            if odd:
                raise InputError(f"statistics must {what} {', '.join(odd)}")
        self._sources = [open_weights(given[n], f"the statistics of expert {n}") for n in asked]
        self._names = vectors.names
        self._need = need
        for source in self._sources:
            known = frozenset(source.names())
            for name in self._names:
                if name not in known:
                    raise InputError(f"statistics must cover every merged matrix, but "
                                     f"{source.label} lack {name}")  # fmt: skip
                m, n = vectors.shape(name)
                wanted = (n, n) if need is Need.GRAM else (m, n)
                if source.shape(name) != wanted:
                    raise InputError(
                        f"{need} must have the shape {wanted} for {name}, but {source.label} have "
                        f"{source.shape(name)}"
                    )
                if not source.dtype(name).is_floating_point:
                    raise InputError(
                        f"statistics must be floating-point, but {name} of {source.label} is "
                        f"{source.dtype(name)}"
                    )

    def __getitem__(self, name: str) -> MatrixStatistics:
        """The statistics of one matrix."""
        if name not in self._names:
            raise KeyError(name)
        return MatrixStatistics(self._sources, name, self._need)

    def __iter__(self) -> Iterator[str]:
        """Names of the merged matrices."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many matrices are merged."""
        return len(self._names)
