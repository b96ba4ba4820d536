"""Task vectors: what fine-tuning changed, matrix by matrix."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from apgd.checkpoints import Weights, WeightSource, is_finite, items, open_weights
from apgd.errors import InputError

Select: TypeAlias = Callable[[str, Tensor], bool]
"""Whether the parameter of this name and value is merged."""

Delta: TypeAlias = dict[str, Tensor]
"""What a merge adds to the base: θ − θ0 by name, float32, for the merged parameters only."""


def two_dimensional(_name: str, tensor: Tensor) -> bool:
    """Select every matrix: the default of `apgd.merge`."""
    return tensor.ndim == 2


class TaskVectors:
    """The task vectors τ_i = θ_i − θ_0 of N experts, for the merged parameters of a model.

    Everything is checked on construction: the experts have the base's keys and shapes, every value
    is finite, and what is merged is floating-point. Base and experts may have different
    floating-point types: all arithmetic is in float32.

    Args:
        base: θ_0, a state dict or the path of a safetensors file.
        experts: θ_i by the expert's name, each a state dict or a path.
        select: which parameters are merged; matrices, where None.
        device: where task vectors are handed out, for example "cpu" or "cuda:0".
        keep: hold the task vectors in memory once read, which takes N x (size of the merged
            parameters) x 4 bytes; otherwise they are read from their source each time.

    Raises:
        InputError: where anything of the above does not hold.
    """

    def __init__(
        self,
        base: WeightSource,
        experts: Mapping[str, WeightSource],
        select: Select | None = None,
        *,
        device: str | torch.device = "cpu",
        keep: bool = True,
    ) -> None:
        if not experts:
            raise InputError("a merge needs at least one expert, but got none")
        self._base = open_weights(base, "the base")
        self._experts = {
            name: open_weights(source, f"expert {name}") for name, source in experts.items()
        }
        self.experts: tuple[str, ...] = tuple(self._experts)
        """Names of the experts, in the order given."""
        self.device = torch.device(device)
        self._keep = keep
        self._kept: dict[str, Tensor] = {}
        for expert in self._experts.values():
            _check_same_parameters(self._base, expert)
        chosen = select or two_dimensional
        self.names: tuple[str, ...] = tuple(n for n, t in items(self._base) if chosen(n, t))
        """Names of the merged parameters, sorted."""
        if not self.names:
            raise InputError(
                f"no parameter of {self._base.label} is selected for merging; "
                f"it has {len(self._base.names())}, the first being {self._base.names()[0]}"
            )
        self._check_values()

    def _check_values(self) -> None:
        for weights in (self._base, *self._experts.values()):
            for name, tensor in items(weights):
                if name in self.names and not tensor.is_floating_point():
                    raise InputError(
                        f"merged parameters must be floating-point, "
                        f"but {name} of {weights.label} is {tensor.dtype}"
                    )
                if name in self.names and tensor.numel() == 0:
                    raise InputError(
                        f"merged parameters must not be empty, but {name} of {weights.label} "
                        f"has shape {tuple(tensor.shape)}"
                    )
                if not is_finite(tensor):
                    raise InputError(
                        f"weights must be finite, but {name} of {weights.label} "
                        f"holds NaN or infinite values"
                    )

    def __len__(self) -> int:
        """N, the number of experts."""
        return len(self.experts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a merged parameter."""
        return self._base.shape(name)

    @property
    def smallest_rank(self) -> int:
        """The smallest r = min(m, n) over the merged matrices."""
        return min(min(self.shape(name)) for name in self.names)

    def __getitem__(self, name: str) -> Tensor:
        """τ of one merged parameter: float32, (N, *shape), on this object's device."""
        if name in self._kept:
            return self._kept[name]
        base = self._base[name].to(self.device, torch.float32)
        tau = torch.stack(
            [
                expert[name].to(self.device, torch.float32) - base
                for expert in self._experts.values()
            ]
        )
        if self._keep:
            self._kept[name] = tau
        return tau

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and τ (N, *shape) of every merged parameter."""
        for name in self.names:
            yield name, self[name]

    def magnitude_thresholds(self, keep_ratio: float) -> Tensor:
        """The magnitude from which an entry of each task vector is kept, (N,) float32.

        All merged parameters of the model are ranked together, separately for each expert. Of d
        entries, those are kept whose magnitude reaches the (d − ⌊keep_ratio·d⌋)-th smallest, as in
        FusionBench; entries that tie with it are all kept.
        """
        magnitudes = torch.cat([tau.abs().flatten(1) for _, tau in self], dim=1)
        count = magnitudes.shape[1]
        rank = max(1, count - int(keep_ratio * count))
        if magnitudes.is_cuda:  # kthvalue has no deterministic version there
            return magnitudes.sort(dim=1).values[:, rank - 1]
        thresholds: Tensor = magnitudes.kthvalue(rank, dim=1).values
        return thresholds

    def apply(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """θ = θ_0 + delta as a whole state dict, in the base's dtypes, on the CPU.

        Parameters without an entry in `delta` are the base's, untouched. The sum is taken in
        float32 (float64 for a float64 base).
        """
        merged: dict[str, Tensor] = {}
        for name, tensor in items(self._base):
            if name in delta:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                total = tensor.to(wide) + delta[name].to("cpu", wide)
                merged[name] = total.to(tensor.dtype)
            else:
                merged[name] = tensor.clone()
        return merged


def _check_same_parameters(base: Weights, expert: Weights) -> None:
    missing = sorted(set(base.names()) - set(expert.names()))
    extra = sorted(set(expert.names()) - set(base.names()))
    for names, what in ((missing, "lacks"), (extra, "has in excess")):
        if names:
            raise InputError(
                f"experts must have the base's parameters, but {expert.label} {what} "
                f"{len(names)} of them, the first being {names[0]}"
            )
    for name in base.names():
        if base.shape(name) != expert.shape(name):
            raise InputError(
                f"experts must have the base's shapes, but {name} of {expert.label} is "
                f"{expert.shape(name)} where the base has {base.shape(name)}"
            )
