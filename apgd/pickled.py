"""Read the tensors of a PyTorch checkpoint without running anything that it asks for.

A checkpoint of PyTorch is a pickle, that is a program: it names functions and has them called. Here
nothing is imported and nothing is called. Functions that rebuild tensors are recorded, every class
becomes a placeholder that keeps its state, and any other call is refused.

This file is also the program of the process in which a checkpoint is read (see apgd.sandbox), with
limits on memory, time and written bytes; so it needs nothing but numpy, and imports nothing of this
package. Files of PyTorch before 1.6, which are no archives, are left to `torch.load` with
`weights_only=True` in that process.
"""

import json
import math
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

REFUSED = 3
"""Exit status where a checkpoint was refused; the reason is in the standard error."""

_MAX_PICKLE = 64 << 20
_MAX_MEMBERS = 100_000
_MAX_DEPTH = 64
_MAX_MESSAGE = 500
_MARGIN = 256 << 20
_SECONDS_PER_GIB = 60
_NESTED = ("state_dict", "model_state_dict", "model", "module")

_STORAGES = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# What modules and their transforms hold besides tensors. These calls are not made either: what
# would come of them is not needed, and a placeholder stands for it.
_NOT_NEEDED = frozenset(
    {
        "torch.Size",
        "torch.device",
        "torchvision.transforms.functional.InterpolationMode",
        "PIL.Image.Resampling",
        "functools.partial",
        "builtins.getattr",
        "builtins.slice",
        "pathlib.PosixPath",
        "_codecs.encode",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
    }
)


class Refused(Exception):  # noqa: N818 - it says what happened
    """A checkpoint that is damaged, or asks for something that is not done; one sentence."""


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive."""

    dtype: str
    """The type's name in safetensors."""
    itemsize: int
    """Bytes of a number."""
    key: str
    """Name of the member that holds them."""
    count: int
    """How many numbers."""

    def __setstate__(self, _state: Any) -> NoReturn:
        raise Refused("it changes a tensor that it built")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was not read yet."""

    storage: Storage
    offset: int
    """Place of the first number in the storage."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Numbers between neighbours along each axis."""

    def __setstate__(self, _state: Any) -> NoReturn:
        raise Refused("it changes a tensor that it built")


@dataclass(frozen=True)
class Found:
    """The tensors of a checkpoint, and what its classes tell."""

    tensors: dict[str, StoredTensor]
    activation: str | None
    """`quick_gelu` or `gelu`, where modules of one of these classes are part of the model."""


def read_structure(archive: IO[bytes]) -> Found:
    """Names and shapes of the tensors of a pickled module or state dict, and where they lie.

    Args:
        archive: the file `data.pkl` of a checkpoint.

    Raises:
        Refused: where the pickle is damaged, or asks for a call that does not rebuild a tensor.
    """
    activations: set[str] = set()
    try:
        listed = list(_tensors(_Reader(archive).load(), activations))
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in any way whatever
        raise Refused(f"its pickle is damaged ({type(error).__name__}: {error})") from error
    tensors = dict(listed)
    if not tensors or len(tensors) < len(listed):
        raise Refused("it must hold tensors, each under a name of its own")
    return Found(tensors, activations.pop() if len(activations) == 1 else None)


def read_bits(archive: zipfile.ZipFile, root: str, tensor: StoredTensor) -> np.ndarray:
    """The entries of a tensor as unsigned integers of their size, contiguous.

    Raises:
        Refused: where the archive does not hold what the pickle says.
    """
    storage = tensor.storage
    member = f"{root}/data/{storage.key}"
    try:
        size = archive.getinfo(member).file_size
    except KeyError:
        raise Refused(f"it lacks the numbers {member}") from None
    if size != storage.count * storage.itemsize:
        raise Refused(
            f"{member} must have {storage.count * storage.itemsize} bytes as its pickle says, "
            f"but has {size}"
        )
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True)
    )
    empty = 0 in tensor.shape
    if not empty and last >= storage.count:
        raise Refused(f"a tensor reaches beyond the {storage.count} numbers of {member}")
    entries = math.prod(tensor.shape)
    if entries > storage.count:
        raise Refused(f"a tensor of {entries} entries repeats the {storage.count} of {member}")
    bits = _BITS[storage.itemsize]
    try:
        numbers = np.frombuffer(archive.read(member), dtype=bits)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise Refused(f"{member} is damaged ({error})") from error
    if empty:
        return np.zeros(tensor.shape, dtype=bits)
    view = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :],
        tensor.shape,
        tuple(step * storage.itemsize for step in tensor.stride),
        writeable=False,
    )
    return np.ascontiguousarray(view)


def open_archive(path: Path) -> tuple[zipfile.ZipFile, str]:
    """A checkpoint's archive and the folder in it, where it can be what PyTorch writes.

    Raises:
        Refused: where it is damaged, compressed, compiled code, or larger inside than outside.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise Refused(f"it is not a whole archive ({error}); it may be truncated") from error
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise Refused(f"it has {len(members)} members, and more than {_MAX_MEMBERS} are not read")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise Refused("it holds a member twice")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(f"it must hold one data.pkl, but holds {len(roots)}")
    root = roots[0]
    if f"{root}/constants.pkl" in names:
        raise Refused("it is a compiled model (TorchScript), not weights")
    stored = sum(member.file_size for member in members)
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or stored > path.stat().st_size:
        raise Refused(
            f"its members must lie in it uncompressed, but they have {stored} bytes in a file of "
            f"{path.stat().st_size}"
        )
    if archive.getinfo(f"{root}/data.pkl").file_size > _MAX_PICKLE:
        raise Refused(f"its pickle is larger than {_MAX_PICKLE} bytes")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise Refused("its numbers must be little-endian")
    return archive, root


def extract(path: Path, out: Path) -> None:
    """Write the tensors of a checkpoint to a safetensors file, one at a time.

    The metadata hold `activation` where the modules' classes tell it.

    Raises:
        Refused: where the checkpoint is damaged or asks for something that is not done.
    """
    archive, root = open_archive(path)
    with archive:
        try:
            with archive.open(f"{root}/data.pkl") as file:
                found = read_structure(file)
        except zipfile.BadZipFile as error:
            raise Refused(f"its pickle is damaged ({error})") from error
        _write(
            out,
            {
                name: (t.storage.dtype, t.shape, t.storage.itemsize)
                for name, t in found.tensors.items()
            },
            {"apgd": json.dumps({"activation": found.activation})} if found.activation else {},
            lambda name: read_bits(archive, root, found.tensors[name]).tobytes(),
        )


class _Placeholder(type):
    """The class of stand-ins for classes and functions; none of them can be called."""

    said: str

    def __call__(cls, *_args: Any, **_names: Any) -> Any:
        if cls.said in _NOT_NEEDED:
            return super().__call__()
        raise _refused_call(cls.said)


class _Object(metaclass=_Placeholder):
    """An object of any class: what it would be is its state."""

    said = "an object"
    state: Any = None

    def __new__(cls, *_args: Any, **_names: Any) -> "_Object":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_args: Any) -> NoReturn:
        raise _refused_call(type(self).said)


def _refused_call(name: str) -> Refused:
    return Refused(f"it asks to call {name}, and only tensors are rebuilt; nothing of it was run")


class _Call:
    """A function that a pickle may ask for, under our own definition of it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _state: Any) -> NoReturn:
        raise Refused("it changes a function")


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_more: Any
) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride):
        raise Refused("it builds a tensor of something else than numbers")
    if any(type(n) is not int or n < 0 for n in numbers):
        raise Refused("it builds a tensor with a size or stride that is no count")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: Any, *_more: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Refused("it builds a parameter of something else than a tensor")
    return data


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": lambda *pairs: OrderedDict(*pairs),
    "builtins.set": lambda *entries: set(*entries),
}


class _Reader(pickle.Unpickler):
    """An unpickler in which names stand for themselves."""

    def find_class(self, module: str, name: str, /) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in Python 2
        said = f"{module}.{name}"
        if said in _CALLS:
            return _Call(_CALLS[said])
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return _Placeholder(name, (_Object,), {"said": said})

    def persistent_load(self, reference: Any, /) -> Storage:
        match reference:
            case ("storage", (str(dtype), int(itemsize)), str(key), str(), int(count)):
                if re.fullmatch(r"\d+", key) and count >= 0:
                    return Storage(dtype, itemsize, key, count)
        raise Refused(f"it refers to numbers in an unknown way: {reference!r:.80}")


def _tensors(root: Any, activations: set[str]) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors of a module, of a state dict, or of one inside a checkpoint."""
    if isinstance(root, _Object):
        yield from _of_module(root, "", activations, 0)
        return
    if not isinstance(root, dict):
        raise Refused(f"it must hold a module or a state dict, but holds a {type(root).__name__}")
    for key in _NESTED:
        if isinstance(root.get(key), dict | _Object):
            yield from _tensors(root[key], activations)
            return
    for name, value in root.items():
        if not (isinstance(name, str) and isinstance(value, StoredTensor)):
            raise Refused(
                f"a state dict must map names to tensors, but {name!r:.80} is a "
                f"{type(value).__name__}"
            )
        yield name, value


def _of_module(
    module: _Object, prefix: str, activations: set[str], depth: int
) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors of a module and those below it, as its `state_dict()` would give them."""
    kind = type(module).said
    state = module.state
    if depth > _MAX_DEPTH:
        raise Refused(f"its modules are nested more than {_MAX_DEPTH} deep")
    if not isinstance(state, dict) or not isinstance(state.get("_parameters"), dict):
        raise Refused(f"{prefix or 'the object in it'} must be a module, but is a {kind}")
    if kind.rpartition(".")[2] == "QuickGELU":
        activations.add("quick_gelu")
    elif kind == "torch.nn.modules.activation.GELU":
        activations.add("gelu")
    passing = state.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        for name, value in _entries(state, group, prefix):
            if value is None or (group == "_buffers" and name in passing):
                continue
            if not isinstance(value, StoredTensor):
                raise Refused(f"{prefix}{name} must be a tensor, but is a {_kind(value)}")
            yield f"{prefix}{name}", value
    for name, child in _entries(state, "_modules", prefix):
        if child is None:
            continue
        if not isinstance(child, _Object):
            raise Refused(f"{prefix}{name} must be a module, but is a {_kind(child)}")
        yield from _of_module(child, f"{prefix}{name}.", activations, depth + 1)


def _entries(state: Mapping[Any, Any], group: str, prefix: str) -> Iterator[tuple[str, Any]]:
    entries = state.get(group, {})
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise Refused(f"{prefix}{group} must map names to what they stand for")
    yield from entries.items()


def _kind(value: Any) -> str:
    return type(value).said if isinstance(value, _Object) else type(value).__name__


def _write(
    out: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]],
    metadata: Mapping[str, str],
    read: Callable[[str], bytes],
) -> None:
    """Write a safetensors file of types, shapes and item sizes, reading one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape, itemsize) in tensors.items():
        start, end = end, end + math.prod(shape) * itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in tensors:
            file.write(read(name))


def _extract_old(path: Path, out: Path) -> None:
    """`extract` for files that are no archives: state dicts of PyTorch before 1.6."""
    import torch

    _limit(path, memory=4 * path.stat().st_size + (1 << 30))
    names = {getattr(torch, n): (d, s) for n, (d, s) in _TORCH_TYPES.items()}
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(
            f"it is neither an archive of PyTorch nor a state dict that torch.load reads with "
            f"weights_only=True ({reason})"
        ) from error
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise Refused("it must hold a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or getattr(value, "dtype", None) not in names:
            raise Refused(f"a state dict must map names to tensors, but {name!r:.80} is none")

    def read(name: str) -> bytes:
        return bytes(loaded[name].contiguous().view(-1).view(torch.uint8).numpy().data)

    described = {
        n: (names[t.dtype][0], tuple(t.shape), names[t.dtype][1]) for n, t in loaded.items()
    }
    _write(out, described, {}, read)


_TORCH_TYPES = {
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


def _limit(path: Path, memory: int) -> None:
    """Bound this process, before anything of the checkpoint is read."""
    import resource

    size = path.stat().st_size
    with Path("/proc/self/statm").open() as file:
        pages = int(file.read().split()[0])
    seconds = _SECONDS_PER_GIB * (1 + size // (1 << 30))
    for kind, bound in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, size + _MARGIN),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def main(arguments: list[str]) -> int:
    """Extract the first argument's tensors into the second; the exit status of the process."""
    path, out = map(Path, arguments)
    try:
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
        if archive:
            _limit(path, memory=path.stat().st_size + _MARGIN)
            extract(path, out)
        else:
            _extract_old(path, out)
    except Refused as refused:
        # Names come from the checkpoint, and the message goes to a terminal.
        shown = "".join(c if c.isprintable() else "?" for c in str(refused)[:_MAX_MESSAGE])
        sys.stderr.write(shown.encode("ascii", "backslashreplace").decode())
        return REFUSED
    except MemoryError:
        sys.stderr.write("reading it takes more memory than its size explains")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
