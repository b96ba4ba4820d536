"""Rendered pictures on disk: made once, checked, and read through memory maps."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from apgd.data.cache import cache_root
from apgd.data.tasks import ImageExamples
from apgd.errors import InputError
from apgd.files import atomic_path

_RENDERERS = ("pillow", "numpy", "matplotlib", "scikit-learn")


class RenderedStore:
    """Examples by the hash of their content, in a folder each.

    Any number of processes may ask for the same examples at once: each file appears complete or not
    at all, and whoever comes second writes the same bytes again.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._checked: set[Path] = set()

    def has(self, pinned: str) -> bool:
        """Whether examples of that hash are there; `get` looks whether they are undamaged."""
        folder = self._folder(pinned)
        return (folder / "labels.npy").exists() and (folder / "images.npy").exists()

    def _folder(self, pinned: str) -> Path:
        return (self._root or cache_root()) / "rendered" / pinned[:32]

    def get(self, name: str, pinned: str, make: Callable[[], ImageExamples]) -> ImageExamples:
        """The examples whose content has the hash `pinned`; made where they are not there yet.

        Files are checked against the hash when this object first reads them; damaged ones are made
        anew.

        Args:
            name: What the examples are, for messages.
            pinned: What the examples' `sha256` must be.
            make: Renders the examples.

        Returns:
            The examples, their images a read-only memory map.

        Raises:
            InputError: where `make` gives something else than was pinned, or the folder cannot be
                written to.
        """
        folder = self._folder(pinned)
        found = self._read(folder, pinned)
        if found is None:
            made = make()
            if (got := made.sha256) != pinned:
                installed = ", ".join(f"{package} {version(package)}" for package in _RENDERERS)
                raise InputError(
                    f"the rendered examples of {name} have the hash {got[:12]}, but {pinned[:12]} "
                    f"is pinned; rendering depends on the installed {installed}"
                )
            try:
                _write(folder / "labels.npy", made.labels)
                _write(folder / "images.npy", made.images[:])
            except OSError as error:
                raise InputError(
                    f"cannot write to the cache folder {folder} ({error.strerror}); "
                    f"name another one in APGD_CACHE"
                ) from error
            found = self._read(folder, pinned) or made
        return found

    def _read(self, folder: Path, pinned: str) -> ImageExamples | None:
        """The examples in a folder, or None where they are missing or damaged."""
        try:
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / "labels.npy", allow_pickle=False)
            if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
                return None  # archives of several
            examples = ImageExamples(images, labels)
        except (OSError, ValueError, EOFError, InputError):
            # ValueError covers what NumPy says of a broken header or a file that is too short.
            return None
        if folder not in self._checked:
            if examples.sha256 != pinned:
                return None
            self._checked.add(folder)
        return examples


def _write(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
