"""Weights as a machine reads them: known by their hash, and fetched over a network once.

Experts lie on storage that all machines share. A machine whose cache is on another disk copies each
there once, for all its processes and all later runs.
"""

import shutil
from pathlib import Path

from apgd.data.cache import cache_root
from apgd.errors import InputError
from apgd.files import atomic_path, sha256_path
from apgd.locks import locked

_FOLDER = "weights"
_SPARE = 2
"""A copy is made where the disk has room for so many of it."""
_known: dict[tuple[str, int, int, int], str] = {}  # path, inode, size and time of change -> hash


def local_weights(source: Path, sha256: str, what: str) -> Path:
    """The weights on this machine's own disk, where there is room; known to be the right ones.

    Args:
        source: a file, or the folder of an adapter, which is small and read where it lies.
        sha256: its hash, as `apgd.files.sha256_path` has it.
        what: what the message calls it, for example "expert signs".

    Raises:
        InputError: where it has another hash.
    """
    folder = cache_root() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir() or not source.exists() or _same_disk(source, folder):
        return _checked(source, sha256, what)
    copy = folder / f"{sha256}{source.suffix}"
    with locked(folder / f".{sha256}.lock"):
        if copy.exists():
            if _hash_of(copy) == sha256:
                return copy
            copy.unlink()  # damaged here; the original may be well
        if shutil.disk_usage(folder).free < _SPARE * source.stat().st_size:
            return _checked(source, sha256, what)
        with atomic_path(copy) as temporary:
            shutil.copyfile(source, temporary)
            # Of what was written, so that damage on the way is found too.
            _checked(temporary, sha256, what, named=source)
    return copy


def _same_disk(first: Path, second: Path) -> bool:
    return first.stat().st_dev == second.stat().st_dev


def _checked(path: Path, sha256: str, what: str, named: Path | None = None) -> Path:
    found = _hash_of(path) if path.exists() else "nothing"
    if found != sha256:
        raise InputError(
            f"the weights of {what} must have the hash {sha256[:12]} that the run began with, but "
            f"{named or path} has {found[:12]} now; start the run again, which sees to it"
        )
    return path


def _hash_of(path: Path) -> str:
    """The hash of a file or folder; of a file that has not changed since, the one found before."""
    if path.is_dir():
        return sha256_path(path)
    about = path.stat()
    key = (str(path), about.st_ino, about.st_size, about.st_mtime_ns)
    if key not in _known:
        _known[key] = sha256_path(path)
    return _known[key]
