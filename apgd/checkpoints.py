"""Files of weights: safetensors, read lazily, written atomically, nothing ever unpickled."""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apgd.errors import DamagedError, InputError
from apgd.files import atomic_path, content_key, write_json

_METADATA = "apgd"
_SEAL = "sha256"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

WeightSource = Mapping[str, Tensor] | str | Path
"""A state dict in memory, or the path of a safetensors file or of a folder of shards."""


class Weights(Protocol):
    """Named tensors, read one at a time."""

    label: str
    """What error messages call these weights."""

    def names(self) -> tuple[str, ...]:
        """Parameter names, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Type of a parameter's entries, without reading it."""

    def identity(self) -> str | None:
        """What tells these weights from others without reading them; None for those in memory."""

    def paths(self) -> tuple[Path, ...]:
        """The files that they are read from."""

    def __getitem__(self, name: str) -> Tensor:
        """The parameter itself, on the CPU, in its stored dtype."""


class InMemory:
    """A state dict as weights."""

    def __init__(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        self.label = label
        self.tied: dict[str, str] = self._ties(tensors)
        """Names that share their memory with one earlier in the alphabet, and that one."""
        self._tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def names(self) -> tuple[str, ...]:
        """Parameter names, sorted."""
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a parameter's entries."""
        return self._tensors[name].dtype

    def identity(self) -> str | None:
        """None: there is nothing to tell them by."""
        return None

    def paths(self) -> tuple[Path, ...]:
        """None."""
        return ()

    @staticmethod
    def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
        first: dict[Any, str] = {}
        found = {}
        for name, tensor in sorted(tensors.items()):
            if tensor.numel() == 0:
                continue
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place in first:
                found[name] = first[place]
            first.setdefault(place, name)
        return found

    def __getitem__(self, name: str) -> Tensor:
        """The parameter itself."""
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        """As arrays of bytes, which processes of one machine can share without a copy."""
        flat = {
            name: (
                tensor.contiguous().view(-1).view(torch.uint8).numpy(),
                tensor.dtype,
                tensor.shape,
            )
            for name, tensor in self._tensors.items()
        }
        return {"label": self.label, "tied": self.tied, "flat": flat}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tensors over the bytes that came; they are only ever read."""
        self.label, self.tied = state["label"], state["tied"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._tensors = {
                name: torch.from_numpy(array).view(dtype).view(shape)
                for name, (array, dtype, shape) in state["flat"].items()
            }


class InFiles:
    """The tensors of safetensors files.

    Only headers are read at first. Each tensor is read when it is asked for, without mapping the
    file, which may be larger than the memory.
    """

    def __init__(self, label: str, path: Path) -> None:
        self.label = f"{label} ({path})"
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        if not path.exists():
            raise InputError(f"{self.label} does not exist")
        self.folder: Path | None = path.absolute() if path.is_dir() else None
        """The folder, where these are a folder of files."""
        path = path.absolute()  # workers elsewhere may have another working folder
        expected = self._index(path)
        for file in sorted(set(expected.values())) if expected else [_file_of(path)]:
            self._read_header(file)
        for name, file in expected.items():
            if self._files.get(name) != file:
                raise InputError(f"the index of {self.label} places {name} in {file.name}, "
                                 f"which does not hold it")  # fmt: skip
        for name in self._files:
            if expected and name not in expected:
                raise InputError(f"{self._files[name].name} of {self.label} holds {name}, "
                                 f"which its index does not name")  # fmt: skip

    def _index(self, path: Path) -> dict[str, Path]:
        """Names and files of a folder of shards; nothing for a single file."""
        if path.is_dir():
            if not (path / INDEX).exists():
                if not (path / SINGLE).exists():
                    raise InputError(f"{self.label} holds neither {INDEX} nor {SINGLE}")
                return {}
            path = path / INDEX
        elif path.suffix != ".json":
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            placed = {str(name): str(file) for name, file in index["weight_map"].items()}
            if not placed:
                raise ValueError("it names no tensors")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the index of {self.label} is damaged: {error}") from error
        for file in set(placed.values()):
            if Path(file).name != file:
                raise InputError(f"shards must lie beside their index, but {self.label} has {file}")
            if not (path.parent / file).is_file():
                raise InputError(f"the shard {file} of {self.label} does not exist")
        return {name: path.parent / file for name, file in placed.items()}

    def _read_header(self, path: Path) -> None:
        try:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    part = file.get_slice(name)
                    if name in self._files:
                        raise InputError(
                            f"{self.label} holds {name} twice: in {self._files[name].name} "
                            f"and in {path.name}"
                        )
                    if part.get_dtype() not in _DTYPES:
                        raise InputError(
                            f"{name} of {self.label} has the type {part.get_dtype()}; "
                            f"known are: {', '.join(_DTYPES)}"
                        )
                    self._files[name] = path
                    self._shapes[name] = tuple(part.get_shape())
                    self._dtypes[name] = _DTYPES[part.get_dtype()]
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.label} is not a whole safetensors file: {path.name}: {error}; "
                f"it may be truncated, or in another format"
            ) from error

    def names(self) -> tuple[str, ...]:
        """Parameter names, sorted."""
        return tuple(sorted(self._files))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter, from the header."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a parameter's entries, from the header."""
        return self._dtypes[name]

    def identity(self) -> str | None:
        """Hash of the files' names, sizes, times of change, and of what their headers say."""
        files = {}
        for path in self.paths():
            status = path.stat()
            files[path.name] = [status.st_size, status.st_mtime_ns]
        tensors = {n: [list(self._shapes[n]), str(self._dtypes[n])] for n in self._files}
        return content_key([files, tensors])

    def paths(self) -> tuple[Path, ...]:
        """The files that they are read from."""
        return tuple(sorted(set(self._files.values())))

    def __getitem__(self, name: str) -> Tensor:
        """The parameter itself, read now."""
        try:
            with _open(self._files[name]) as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self._files[name]} could be read before and cannot any more: {error}"
            ) from error
        return tensor


def _open(path: Path) -> Any:
    return safe_open(path, framework="pt", device="cpu", backend="pread")


def _file_of(path: Path) -> Path:
    return path / SINGLE if path.is_dir() else path


def open_weights(source: WeightSource, label: str, base: Weights | None = None) -> Weights:
    """Open a state dict, a safetensors file, a folder of shards, or an adapter for reading.

    Args:
        source: a state dict; the path of a safetensors file, of an index of shards, or of a folder
            that holds `model.safetensors` or `model.safetensors.index.json`; or the folder of a
            LoRA adapter (see apgd.lora).
        label: what error messages call it, for example "expert signs".
        base: what an adapter changes.

    Raises:
        InputError: where a file is missing or is not a whole safetensors file, the index and the
            shards disagree, or the mapping holds something other than tensors.
    """
    if isinstance(source, Mapping):
        for name, value in source.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{label} must map names to tensors, but {name!r} is a {type(value).__name__}"
                )
        return InMemory(label, source)
    if not isinstance(source, str | Path):
        raise InputError(
            f"{label} must be a state dict or the path of safetensors files, "
            f"but got {type(source).__name__}"
        )
    from apgd.lora import Adapted, Adapter, is_adapter  # which is built on this module

    path = Path(source)
    if not is_adapter(path):
        return InFiles(label, path)
    if base is None:
        raise InputError(f"{label} must be whole weights, but {path} is an adapter")
    return Adapted(Adapter(label, path), base)


def items(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every name and tensor, one at a time."""
    for name in weights.names():
        yield name, weights[name]


def load_weights(
    path: Path, label: str, base: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """All tensors of a safetensors file or a folder of shards, or of a base with an adapter.

    Args:
        path: where they are.
        label: what error messages call them.
        base: what an adapter changes; parameters that it does not change are the base's own.

    Raises:
        InputError: where a file is missing or damaged.
    """
    beside = None if base is None else InMemory("the base", base)
    return dict(items(open_weights(path, label, beside)))


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, object] | None = None,
    *,
    for_transformers: bool = False,
) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: the file to write; a file of that name is replaced only by a whole new one.
        tensors: names and tensors; memory shared between names is written once for each.
        metadata: JSON values, kept in the file's header.
        for_transformers: mark the file as PyTorch's, as versions of that library ask for.

    Raises:
        DiskFullError: where there is no room for it.
    """
    header = {_METADATA: json.dumps(dict(metadata), sort_keys=True)} if metadata else {}
    header |= {"format": "pt"} if for_transformers else {}
    with atomic_path(path) as temporary:
        try:
            save_file(_apart(tensors), temporary, metadata=header or None)
        except SafetensorError as error:  # which is what safetensors makes of an OSError
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        if len(header) > 1:
            _sort_metadata(temporary)


def save_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """As `save_weights`, with a hash of it all in the header, by which `load_sealed` finds damage.

    Raises:
        DiskFullError: where there is no room for it.
    """
    apart = _apart(tensors)
    save_weights(path, apart, {**metadata, _SEAL: _seal(apart, metadata)})


def load_sealed(path: Path, label: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors and the metadata that `save_sealed` wrote.

    Args:
        path: the file.
        label: what error messages call it.

    Raises:
        DamagedError: where the file is not what was written.
    """
    try:
        tensors = load_weights(path, label)
        metadata = read_metadata(path)
    except (InputError, ValueError) as error:
        raise DamagedError(f"{label} cannot be read: {error}") from error
    written = metadata.pop(_SEAL, "none")
    found = _seal(tensors, metadata)
    if found != written:
        raise DamagedError(
            f"{label} ({path}) must have the hash {str(written)[:12]} that was written with it, "
            f"but has {found[:12]}"
        )
    return tensors, metadata


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, and over metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        flat: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(flat)
    return digest.hexdigest()


def _sort_metadata(path: Path) -> None:
    """Put the entries of the metadata in order, which otherwise changes between processes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise RuntimeError(f"the header of {path} grew from {length} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(length))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, those that share memory with another one copied."""
    seen = set()
    apart = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        apart[name] = here.clone() if place in seen else here
        seen.add(place)
    return apart


def write_index(folder: Path, files: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a folder of shards, which says in which file each tensor is."""
    write_json(
        folder / INDEX,
        {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(files.items()))},
    )


def is_shard(path: Path) -> bool:
    """Whether a file is called like a shard of weights."""
    return re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path.name) is not None


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that `save_weights` put into a file's header."""
    InFiles("checkpoint", path)
    with _open(path) as file:
        found: dict[str, object] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        return found


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor)
    return math.isfinite(low) and math.isfinite(high)  # both are NaN where one entry is
