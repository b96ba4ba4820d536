"""Task vectors: what fine-tuning changed, matrix by matrix."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

import torch
from torch import Tensor

from apgd.checkpoints import (
    InMemory,
    Weights,
    WeightSource,
    is_finite,
    open_weights,
)
from apgd.errors import InputError
from apgd.execution import Executor, Here
from apgd.lora import Adapted
from apgd.order_statistics import order_statistics

Select: TypeAlias = Callable[[str, Tensor], bool]
"""Whether a parameter is merged, by its name and a tensor that has its shape and type, but no
values (it is on the device "meta")."""

Delta: TypeAlias = dict[str, Tensor]
"""What a merge adds to the base: θ − θ0 by name, float32, for the merged parameters only."""

R = TypeVar("R")

_FLOAT32 = 4
_WORKING_COPIES = 6  # of one matrix, besides its N task vectors


def two_dimensional(_name: str, tensor: Tensor) -> bool:
    """Select every floating-point matrix: the default of `apgd.merge`."""
    return tensor.ndim == 2 and tensor.is_floating_point()


class TaskVectors:
    """The task vectors τ_i = θ_i − θ_0 of N experts, for the merged parameters of a model.

    Names, shapes and types are checked on construction, of files from their headers alone; values
    are read one parameter at a time, and checked then. Base and experts may have different
    floating-point types: all arithmetic is in float32.

    Parameters of a state dict that share their memory (tied weights) count once: they are merged
    under the first of their names, and the others get the same result.

    Args:
        base: θ_0, a state dict or the path of safetensors files.
        experts: θ_i by the expert's name, each a state dict or a path; the folder of a LoRA adapter
            stands for the base with its change.
        select: which parameters are merged; floating-point matrices, where None.
        device: where task vectors are handed out, for example "cpu" or "cuda:0".
        keep: hold the task vectors in memory once read, which takes N x (size of the merged
            parameters) x 4 bytes; otherwise they are read from their source each time.
        executor: who works on the parameters; this process, where None.

    Raises:
        InputError: where names, shapes or types do not fit.
    """

    def __init__(
        self,
        base: WeightSource,
        experts: Mapping[str, WeightSource],
        select: Select | None = None,
        *,
        device: str | torch.device = "cpu",
        keep: bool = True,
        executor: Executor | None = None,
    ) -> None:
        if not experts:
            raise InputError("a merge needs at least one expert, but got none")
        self._base = open_weights(base, "the base")
        self._experts = {
            name: open_weights(source, f"expert {name}", self._base)
            for name, source in experts.items()
        }
        self.experts: tuple[str, ...] = tuple(self._experts)
        """Names of the experts, in the order given."""
        self.device = torch.device(device)
        self.executor: Executor = executor or Here()
        self._keep_on = self.device if keep else None
        self._kept: dict[str, Tensor] = {}
        for expert in self._experts.values():
            _check_same_parameters(self._base, expert)
        self.tied: dict[str, str] = self._tied()
        """Parameters that are another one under a second name, and that one."""
        chosen = select or two_dimensional
        selected = [n for n in self._base.names() if chosen(n, _without_values(self._base, n))]
        self.names: tuple[str, ...] = tuple(n for n in selected if n not in self.tied)
        """Names of the merged parameters, sorted; tied ones once."""
        self.not_merged: tuple[str, ...] = tuple(
            n for n in self._base.names() if self.tied.get(n, n) not in self.names
        )
        """Names of the parameters that stay the base's."""
        self._check_selected(selected)

    def _tied(self) -> dict[str, str]:
        if not isinstance(self._base, InMemory):
            return {}
        tied = self._base.tied
        for expert in self._experts.values():
            for name, other in tied.items():
                if not torch.equal(expert[name], expert[other]):
                    raise InputError(
                        f"{name} and {other} are tied in the base (they share memory), but differ "
                        f"in {expert.label}; untie them in the base, or tie them in the expert"
                    )
        return tied

    def _check_selected(self, selected: list[str]) -> None:
        if not self.names:
            raise InputError(
                f"no parameter of {self._base.label} is selected for merging; "
                f"it has {len(self._base.names())}, the first being {self._base.names()[:1]}"
            )
        for name in selected:
            if self.tied.get(name, name) not in self.names:
                raise InputError(
                    f"tied parameters must be selected together, but {name} is and "
                    f"{self.tied[name]} is not"
                )
            if not self._base.dtype(name).is_floating_point:
                raise InputError(
                    f"merged parameters must be floating-point, "
                    f"but {name} of {self._base.label} is {self._base.dtype(name)}"
                )
            if 0 in self._base.shape(name):
                raise InputError(
                    f"merged parameters must not be empty, but {name} of {self._base.label} "
                    f"has shape {self._base.shape(name)}"
                )

    def __len__(self) -> int:
        """N, the number of experts."""
        return len(self.experts)

    @property
    def base(self) -> Weights:
        """θ_0."""
        return self._base

    @property
    def sources(self) -> dict[str, Weights]:
        """Base and experts by name; the base's is `base`, an expert's is `expert NAME`."""
        return {"base": self._base} | {f"expert {n}": w for n, w in self._experts.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a merged parameter."""
        return self._base.shape(name)

    def working_bytes(self, name: str) -> int:
        """Memory in bytes that is enough to merge one parameter: N + 6 times its size."""
        return math.prod(self._base.shape(name)) * _FLOAT32 * (len(self) + _WORKING_COPIES)

    def stored_bytes(self, name: str) -> int:
        """Size in bytes of any parameter of the base, merged or not, as it is stored."""
        return math.prod(self._base.shape(name)) * self._base.dtype(name).itemsize

    @property
    def entries(self) -> int:
        """d, the entries of the merged parameters."""
        return sum(math.prod(self.shape(name)) for name in self.names)

    @property
    def smallest_rank(self) -> int:
        """The smallest r = min(m, n) over the merged matrices."""
        return min(min(self.shape(name)) for name in self.names)

    def __getitem__(self, name: str) -> Tensor:
        """τ of one merged parameter: float32, (N, *shape), on this object's device.

        In memory the same row of all experts lies together, which is how rows are worked on.

        Raises:
            InputError: where base or an expert holds NaN or infinite values in it.
        """
        if name in self._kept:
            return self._kept[name].to(self.device)
        base = self._base[name].to(self.device).to(torch.float32)
        rows, *rest = base.shape
        stacked = torch.empty((rows, len(self), *rest), dtype=torch.float32, device=self.device)
        for number, expert in enumerate(self._experts.values()):
            if isinstance(expert, Adapted):  # which knows it better than a difference would
                change = expert.change(name)
                stacked[:, number] = 0 if change is None else change.to(self.device)
                continue
            value = expert[name].to(self.device).to(torch.float32)
            torch.sub(value, base, out=stacked[:, number])
        if not is_finite(stacked):  # as they are not where one of the two is not
            for weights in self.sources.values():
                _checked(weights, name)
            raise InputError(
                f"differences from the base must fit into float32, but those of {name} do not"
            )
        return self._remembered(name, stacked.transpose(0, 1))

    def _remembered(self, name: str, tau: Tensor) -> Tensor:
        if self._keep_on is not None:
            self._kept[name] = tau.to(self._keep_on)
        return tau

    def is_kept_on(self, device: torch.device) -> bool:
        """Whether what is read stays in the memory of a device."""
        return self._keep_on == device

    def keeping(self, on: str | torch.device) -> "Self":
        """The same task vectors, held in the memory of a device once they were read there.

        These themselves, where they are held there anyway.
        """
        if self.is_kept_on(torch.device(on)):
            return self
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, _keep_on=torch.device(on), _kept={})
        return part

    def total(self, function: Callable[[str, Tensor], Tensor]) -> Tensor:
        """The sum over the merged parameters of integers that `function` finds; see `map`."""
        return sum((found for _, found in self.map(function)), start=torch.tensor(0, device="cpu"))

    def total_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`total` of a function that does not ask for the name."""
        return self.total(partial(_without_name, function))

    def map(
        self,
        function: Callable[[str, Tensor], R],
        working_bytes: Callable[[str], int] | None = None,
    ) -> Iterator[tuple[str, R]]:
        """Name of every merged parameter, and what `function` makes of it, as they are done.

        The executor calls it, in any order, several at a time or in other processes.

        Args:
            function: called with name and τ (N, *shape); picklable and pure.
            working_bytes: memory that it needs for a parameter of this name, τ included; this
                object's own `working_bytes`, where None.
        """
        names = self.largest_first()
        sizes = [(working_bytes or self.working_bytes)(name) for name in names]
        for index, result in self.executor.map(partial(_on_one, function), self, names, sizes):
            yield names[index], result

    def largest_first(self) -> list[str]:
        """Names of the merged parameters, those that take longest first."""
        return sorted(self.names, key=lambda name: (-math.prod(self.shape(name)), name))

    def only(self, names: tuple[str, ...]) -> "Self":
        """The same task vectors, with fewer parameters merged, by this process."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.names = names
        part.executor = Here(self.executor.memory) if isinstance(self.executor, Here) else Here()
        return part

    def __getstate__(self) -> dict[str, Any]:
        """Task vectors are sent without what they read, and are worked on where they arrive."""
        return self.__dict__ | {"_kept": {}, "executor": Here()}

    def magnitude_thresholds(self, keep_ratio: float) -> Tensor:
        """The magnitude from which an entry of each task vector is kept, (N,) float32 on the CPU.

        All merged parameters of the model are ranked together, separately for each expert. Of d
        entries, those are kept whose magnitude reaches the (d − ⌊keep_ratio·d⌋)-th smallest, as in
        FusionBench; entries that tie with it are all kept.

        The selection is exact and needs no memory to speak of; see `apgd.order_statistics`.
        """
        count = self.entries
        rank = max(1, count - int(keep_ratio * count))
        ranks = torch.full((len(self), 1), rank, device="cpu")
        return order_statistics(self.total_of, ranks).squeeze(1)

    def relative_norms(self) -> Tensor:
        """‖τ_i‖ / ‖θ_0‖ over the merged parameters, (N,) float64 on the CPU."""
        changed = torch.zeros(len(self), dtype=torch.float64, device="cpu")
        for _, squares in self.map(_squares):
            changed += squares
        size = sum(self._base[name].double().square().sum().cpu() for name in self.names)
        return (changed / size).sqrt()

    def apply(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """θ = θ_0 + delta as a whole state dict, in the base's dtypes, on the CPU.

        Parameters without an entry in `delta` are the base's, untouched.
        """
        return {name: self.applied(name, delta) for name in self._base.names()}

    def applied(self, name: str, delta: Mapping[str, Tensor]) -> Tensor:
        """One parameter of θ = θ_0 + delta, in the base's dtype, on the CPU.

        The sum is taken in float32 (float64 for a float64 base).

        Raises:
            InputError: where the parameter of the base, or the sum in the base's dtype, holds NaN
                or infinite values.
        """
        tensor = _checked(self._base, name)
        name = self.tied.get(name, name)
        if name not in delta:
            return tensor.clone() if isinstance(self._base, InMemory) else tensor
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        result = tensor.to(wide).add(delta[name].to("cpu", wide)).to(tensor.dtype)
        if not is_finite(result):
            raise InputError(
                f"the merged {name} exceeds what {tensor.dtype} can hold; smaller coefficients, "
                f"or a base of a wider type, would avoid that"
            )
        return result


def _on_one(function: Callable[[str, Tensor], R], vectors: TaskVectors, name: str) -> R:
    return function(name, vectors[name])


def _without_name(function: Callable[[Tensor], Tensor], _name: str, tau: Tensor) -> Tensor:
    return function(tau)


def _squares(_name: str, tau: Tensor) -> Tensor:  # (N,)
    return tau.double().square().flatten(start_dim=1).sum(dim=1).cpu()


def _without_values(weights: Weights, name: str) -> Tensor:
    return torch.empty(weights.shape(name), dtype=weights.dtype(name), device="meta")


def _checked(weights: Weights, name: str) -> Tensor:
    tensor = weights[name]
    if not is_finite(tensor):
        raise InputError(
            f"weights must be finite, but {name} of {weights.label} holds NaN or infinite values"
        )
    return tensor


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
        kinds = (base.dtype(name), expert.dtype(name))
        if kinds[0].is_floating_point != kinds[1].is_floating_point:
            raise InputError(
                f"experts must have the base's kinds of numbers, but {name} of {expert.label} is "
                f"{kinds[1]} where the base has {kinds[0]}"
            )
