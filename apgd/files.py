"""Files that are either whole or absent."""

import errno
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apgd.errors import DamagedError, DiskFullError, InputError

PROBE = ".probe-"
_PART = ".part"
_SEAL = "seal"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an exception.

    The content is on disk (fsync) before the name changes, so a reader sees the old file or the
    whole new one, also after a crash of the machine.

    Raises:
        DiskFullError: where there is no room for it; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, what: str) -> None:
    """Raise InputError unless files can be written in `folder`, which is made where it is missing.

    Args:
        folder: where files are going to be written.
        what: what the message calls it, for example "the run folder".
    """
    probe = folder / f"{PROBE}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{what} must be writable, but {folder} could not be made or written to "
            f"({error.strerror})"
        ) from error


def is_leftover(path: Path) -> bool:
    """Whether a file is what a process that was killed while writing may leave behind."""
    return path.name.startswith(PROBE) or (path.name.startswith(".") and path.suffix == _PART)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with sorted keys; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a hash of it, by which `read_sealed` finds damage.

    Each key has a line, which is quicker than to indent everything, and read as easily.
    """
    lines = [
        f"  {json.dumps(key)}: {json.dumps(content, sort_keys=True, allow_nan=False)}"
        for key, content in sorted({**value, _SEAL: _seal(value)}.items())
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote; JSON that was written without a seal is taken as it is.

    Raises:
        DamagedError: where the file is not a JSON object, or not what was written.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seal = value.pop(_SEAL, None)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} must be a JSON object, but is not: {error}") from error
    if seal is not None and seal != _seal(value):
        raise DamagedError(
            f"{path} must have the hash {str(seal)[:12]} that was written with it, but has "
            f"{_seal(value)[:12]}"
        )
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def put_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `….damaged`: not used any more, but not lost; that name.

    Where another process has done so already, nothing is left to do.
    """
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged{'' if number == 1 else f'-{number}'}")
        if not aside.exists():
            break
    with suppress(FileNotFoundError):
        path.rename(aside)
    return aside


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """The SHA-256 of a file's bytes, or of the names and bytes of all files in a folder."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def content_key(value: Any) -> str:
    """Twelve hexadecimal digits that identify a JSON value by its content."""
    canonical = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
