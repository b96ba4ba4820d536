"""The inputs of a model's linear layers, seen where they are multiplied.

Models call their matrices in different ways: modules of linear layers, attention that hands its
matrices to a function, matrices cut out of others. What they have in common is that in the end
torch multiplies something by a tensor that lies where the matrix does, and that is what is watched.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from apgd.errors import InputError

_ATEN = torch.ops.aten
# Where the two factors are among the arguments, and whether the second one is transposed before it
# gets there.
_PRODUCTS: Mapping[Any, tuple[int, int, bool]] = {
    _ATEN.addmm.default: (1, 2, True),
    _ATEN.mm.default: (0, 1, True),
    _ATEN.bmm.default: (0, 1, True),
    _ATEN.baddbmm.default: (1, 2, True),
    _ATEN.linear.default: (0, 1, False),
}


class LayerInputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within its block, adds up x xᵀ over the inputs x that linear layers' matrices get.

    Sums are float32, on the matrices' devices.

    Args:
        matrices: weights (m, n) by name, as the model has them: a layer computes x Wᵀ + b.
    """

    def __init__(self, matrices: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
        self._names: dict[int, list[str]] = {}
        for name, matrix in matrices.items():  # tied ones lie at the same place
            self._names.setdefault(matrix.data_ptr(), []).append(name)
        self._storages = {_storage(matrix) for matrix in matrices.values()}
        self._matrices = matrices
        self._sums: dict[int, Tensor] = {}
        self._counts = dict.fromkeys(self._names, 0)
        self._fast_attention = True

    def __enter__(self) -> Self:
        """Begin to watch; attention takes the way on which its matrices are seen."""
        self._fast_attention = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        entered: Self = super().__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to watch."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fast_attention)

    def means(self) -> dict[str, Tensor]:
        """The mean of x xᵀ over all inputs x so far, (n, n) by the matrix's name.

        Raises:
            InputError: where a matrix had no inputs.
        """
        found = {}
        for place, names in self._names.items():
            for name in names:
                if not self._counts[place]:
                    raise InputError(
                        f"every merged matrix must get inputs for their inner products to be "
                        f"known, but {name} got none"
                    )
                found[name] = self._sums[place] / self._counts[place]
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch compute as it would, and look at products with the matrices."""
        if func in _PRODUCTS:
            first, second, transposed = _PRODUCTS[func]
            matrix = args[second]
            if _storage(matrix) in self._storages:
                self._add(args[first], matrix.mT if transposed else matrix)
        return func(*args, **(kwargs or {}))

    def _add(
        self,
        inputs: Tensor,  # (..., n)
        matrix: Tensor,  # (..., m, n), the same matrix for all
    ) -> None:
        place = matrix.data_ptr()
        names = self._names.get(place, [])
        if not names or not _is_whole(matrix, self._matrices[names[0]]):
            raise InputError(
                f"a merged matrix W must be used whole and as x Wᵀ for its inputs to be known, "
                f"but {self._nearest(matrix)} is not"
            )
        x = inputs.flatten(end_dim=-2)
        if place not in self._sums:
            width = x.shape[1]
            self._sums[place] = torch.zeros(width, width, dtype=torch.float32, device=x.device)
        self._sums[place].addmm_(x.T.float(), x.float())
        self._counts[place] += len(x)

    def _nearest(self, matrix: Tensor) -> str:
        """The name of a matrix in whose memory this one lies."""
        return next(n for n, w in self._matrices.items() if _storage(w) == _storage(matrix))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_whole(
    used: Tensor,  # (..., m, n)
    matrix: Tensor,  # (m, n)
) -> bool:
    """Whether a tensor at the same place has the same entries, once or repeated."""
    sizes, steps = used.shape[-2:], used.stride()[-2:]
    same = [
        size == 1 or step == wanted
        for size, step, wanted in zip(sizes, steps, matrix.stride(), strict=True)
    ]
    return sizes == matrix.shape and all(same) and not any(used.stride()[:-2])
