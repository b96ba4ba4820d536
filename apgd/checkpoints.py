"""Files of weights: safetensors, read lazily, written atomically, nothing ever unpickled."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apgd.errors import InputError
from apgd.files import atomic_path

_METADATA = "apgd"

WeightSource = Mapping[str, Tensor] | str | Path
"""A state dict in memory, or the path of a safetensors file."""


class Weights(Protocol):
    """Named tensors, read one at a time."""

    label: str
    """What error messages call these weights."""

    def names(self) -> tuple[str, ...]:
        """Parameter names, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter, without reading it."""

    def __getitem__(self, name: str) -> Tensor:
        """The parameter itself, on the CPU, in its stored dtype."""


class _InMemory:
    def __init__(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        self.label = label
        self._tensors = tensors

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].detach().cpu()


class _InFile:
    def __init__(self, label: str, path: Path) -> None:
        self.label = f"{label} ({path})"
        if not path.exists():
            raise InputError(f"{self.label} does not exist")
        try:
            opened: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.label} is not a whole safetensors file: {error}; "
                f"it may be truncated, or in another format"
            ) from error
        self._file: Any = opened
        self._names: tuple[str, ...] = tuple(sorted(opened.keys()))

    def names(self) -> tuple[str, ...]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def open_weights(source: WeightSource, label: str) -> Weights:
    """Open a state dict or a safetensors file for reading.

    Args:
        source: a state dict, or the path of a safetensors file.
        label: what error messages call it, for example "expert signs".

    Raises:
        InputError: where the file is missing or is not a whole safetensors file, or the mapping
            holds something other than tensors.
    """
    if isinstance(source, Mapping):
        for name, value in source.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{label} must map names to tensors, but {name!r} is a {type(value).__name__}"
                )
        return _InMemory(label, source)
    if not isinstance(source, str | Path):
        raise InputError(
            f"{label} must be a state dict or the path of a safetensors file, "
            f"but got {type(source).__name__}"
        )
    return _InFile(label, Path(source))


def items(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every name and tensor, one at a time."""
    for name in weights.names():
        yield name, weights[name]


def load_weights(path: Path, label: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        InputError: where the file is missing or damaged.
    """
    return dict(items(open_weights(path, label)))


def save_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: the file to write; a file of that name is replaced only by a whole new one.
        tensors: names and tensors; memory shared between names is written once for each.
        metadata: JSON values, kept in the file's header.
    """
    # A single entry: with several, their order in the file changes from one process to the next.
    header = {_METADATA: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            temporary,
            metadata=header,
        )


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that `save_weights` put into a file's header."""
    _InFile("checkpoint", path)
    with safe_open(path, framework="pt", device="cpu") as file:
        found: dict[str, object] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        return found


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(torch.isfinite(tensor).all())
