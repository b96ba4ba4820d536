"""Decoded images on disk, so that scoring a model costs its forward passes only."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from apgd.data.cache import cache_root
from apgd.data.pixels import EncodedImages
from apgd.errors import InputError
from apgd.files import content_key, write_json
from apgd.locks import locked
from apgd.source import source_hash

_CHUNK = 256  # images between two points from which a killed process goes on


def cache_path(images: EncodedImages) -> Path:
    """Where the decoded images are kept; their content, size and recipe decide it."""
    key = [
        images.split.content_sha256, hashlib.sha256(images.rows.tobytes()).hexdigest(),
        images.size, images.recipe, source_hash("apgd.data.pixels"), PIL.__version__,
        features.version("jpg"),
    ]  # fmt: skip
    return cache_root() / "pixels" / content_key(key) / "images.npy"


def is_cached(images: EncodedImages) -> bool:
    """Whether the images were decoded on this machine before."""
    return cache_path(images).exists()


def cached(images: EncodedImages, report: Callable[[int, int], None] | None = None) -> np.ndarray:
    """The decoded images as a read-only memory map, made where it is not there yet.

    One process of a machine decodes while others wait; a killed one goes on where it stopped.

    Args:
        images: what is decoded.
        report: called with the images done and their total.

    Returns:
        uint8 (images, size, size, 3).

    Raises:
        InputError: where an image cannot be decoded, the disk has not enough space, or the cache
            folder cannot be written to.
    """
    path = cache_path(images)
    found = _opened(path, images)
    if found is None:
        try:
            with locked(path.with_name(".lock")):
                found = _opened(path, images)
                if found is None:
                    _make(path, images, report)
                    found = _opened(path, images)
        except OSError as error:
            raise InputError(
                f"decoded images could not be kept in {path.parent} ({error}); "
                f"another folder can be named in APGD_CACHE"
            ) from error
    if found is None:
        raise InputError(f"{path} must be the array that was just written, but is not")
    return found


def _opened(path: Path, images: EncodedImages) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(array, np.ndarray):  # an archive of several
        return None
    return array if (array.shape, array.dtype) == (images.shape, images.dtype) else None


def _make(path: Path, images: EncodedImages, report: Callable[[int, int], None] | None) -> None:
    partial, progress = path.with_name("partial.npy"), path.with_name("progress.json")
    done = _done(partial, progress, images)
    if done == 0:
        needed = int(np.prod(images.shape))
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise InputError(
                f"the disk of {path.parent} must have {needed / 1e9:.1f} GB for decoded images, "
                f"but has {free / 1e9:.1f} GB; another folder can be named in APGD_CACHE"
            )
    mode = "r+" if done else "w+"
    array = np.lib.format.open_memmap(partial, mode, images.dtype, images.shape)
    order = np.argsort(images.rows)  # the file is read from front to back
    for start in range(done, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        array[chosen] = images[chosen]
        array.flush()
        done = start + len(chosen)
        write_json(progress, {"done": done})
        if report is not None:
            report(done, len(order))
    del array
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)
    progress.unlink(missing_ok=True)


def _done(partial: Path, progress: Path, images: EncodedImages) -> int:
    """How many images a killed process has left behind, in file order."""
    try:
        done = int(json.loads(progress.read_text(encoding="utf-8"))["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return done if _opened(partial, images) is not None else 0
