"""An adapter as an expert: the base's parameters, some of them changed."""

from pathlib import Path

import torch
from torch import Tensor

from apgd.checkpoints import Weights
from apgd.errors import InputError
from apgd.lora.adapters import Adapter


class Adapted:
    """W_0 + ΔW under the base's names, made matrix by matrix when asked for.

    The sum, in float32, rounds away the last bits of a small ΔW: of one that is a thousandth of W_0
    in norm, W_0 + ΔW − W_0 is off by 2.5e-5 of it. Task vectors are therefore taken from `change`,
    which is ΔW rounded to float32 once (2.5e-8).

    Args:
        adapter: what is changed.
        base: the weights that it was trained beside.

    Raises:
        InputError: where the base has no such matrices.
    """

    def __init__(self, adapter: Adapter, base: Weights) -> None:
        self.label = adapter.label
        self.base = base
        self._adapter = adapter
        self._changed = frozenset(adapter.names())
        known = set(base.names())
        for name in adapter.names():
            if name not in known:
                raise InputError(
                    f"adapters must change matrices that the base has, but {self.label} changes "
                    f"{name}, which {base.label} lacks"
                )
            if base.shape(name) != adapter.shape(name):
                raise InputError(
                    f"adapters must have the base's shapes, but {name} of {self.label} is "
                    f"{adapter.shape(name)} where the base has {base.shape(name)}"
                )

    def names(self) -> tuple[str, ...]:
        """Parameter names: the base's."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter: the base's."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a parameter's entries: float32 of changed ones, the base's of others."""
        return torch.float32 if name in self._changed else self.base.dtype(name)

    def identity(self) -> str:
        """The adapter's; the base has one of its own."""
        return self._adapter.identity()

    def paths(self) -> tuple[Path, ...]:
        """The adapter's files; the base has its own."""
        return self._adapter.paths()

    def change(self, name: str) -> Tensor | None:
        """ΔW of one parameter, float32, exactly rounded; None where it is the base's."""
        return self._adapter.factors(name).change() if name in self._changed else None

    def __getitem__(self, name: str) -> Tensor:
        """The parameter itself, on the CPU."""
        change = self.change(name)
        kept = self.base[name]
        return kept if change is None else change.add_(kept.to(torch.float32))
