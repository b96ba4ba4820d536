"""Images as CLIP sees them before normalisation: decoded, resized, cropped, and in RGB."""

import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from apgd.data.hub import IMAGE
from apgd.data.prepared import PreparedSplit
from apgd.errors import InputError

Array = np.ndarray
_MOST_THREADS = 16


class Recipe(StrEnum):
    """Whose preprocessing is followed; they agree on all but odd margins and rare formats."""

    TRANSFORMERS = "transformers"
    """RGB first, transparency being white; of an odd margin, the smaller half is cut off at the top
    or left."""
    OPEN_CLIP = "open_clip"
    """RGB last, which matters for palettes and transparency; half an odd margin is rounded to
    even, as torchvision does."""


def decoded(content: bytes, size: int, recipe: Recipe = Recipe.TRANSFORMERS) -> Array:
    """One image: its shorter side resized to `size` (bicubic), then the square in the middle.

    Args:
        content: the encoded image; it is turned upright where it says how it was held.
        size: pixels per side.
        recipe: in which order, and where the middle is.

    Returns:
        uint8 (size, size, 3).

    Raises:
        InputError: where `content` is no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if recipe is Recipe.TRANSFORMERS:
                image = _on_white(image)
            image = _resized(image, size)
            left, top = (_margin(side - size, recipe) for side in image.size)
            image = image.crop((left, top, left + size, top + size))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace("\n", " ")[:120]
        raise InputError(f"an image must be decodable, but: {reason}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _resized(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        wanted = (size, max(size, int(size * height / width)))
    else:
        wanted = (max(size, int(size * width / height)), size)
    return image if image.size == wanted else image.resize(wanted, Image.Resampling.BICUBIC)


def _margin(surplus: int, recipe: Recipe) -> int:
    """Pixels cut off at the top or left; `round` goes to the even neighbour of a half."""
    return surplus // 2 if recipe is Recipe.TRANSFORMERS else round(surplus / 2)


class EncodedImages:
    """Images of a prepared split, decoded when they are indexed: an array that is never whole.

    It may be pickled, and used after a fork.

    Args:
        split: where the images are.
        rows: which of its rows, int64 (images,), in this order.
        size: pixels per side.
        recipe: how they are preprocessed.
        threads: how many decode at once; as many as there are cores, up to 16, where None.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        split: PreparedSplit,
        rows: Array,
        size: int,
        recipe: Recipe = Recipe.TRANSFORMERS,
        threads: int | None = None,
    ) -> None:
        self.split = split
        self.rows = rows
        self.size = size
        self.recipe = recipe
        self._threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._reader: _Reader | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, size, size, 3)."""
        return (len(self.rows), self.size, self.size, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | Array | Sequence[int]) -> Array:
        """The images at an index, a slice, or an array of indices: uint8 (..., size, size, 3)."""
        chosen = self.rows[index]
        images = self._decode(np.atleast_1d(chosen))
        return images if np.ndim(chosen) else images[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("encoded images must be copied to become an array")
        return self[:].astype(dtype or np.uint8, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def take(self, rows: Array | slice) -> "EncodedImages":
        """The images at these indices, still encoded."""
        return EncodedImages(self.split, self.rows[rows], self.size, self.recipe, self._threads)

    def _decode(self, rows: Array) -> Array:
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self.split, self._threads)
        return self._reader.decode(rows, self.size, self.recipe)


class _Reader:
    """The open file and the threads behind some images, in one process."""

    def __init__(self, split: PreparedSplit, threads: int) -> None:
        self.process = os.getpid()
        self._split = split
        try:
            self._file = pq.ParquetFile(split.path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{split.path} must be readable, but: {error}") from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "decode") if threads > 1 else None

    def decode(self, rows: Array, size: int, recipe: Recipe) -> Array:
        images = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        # Groups in file order, each read once, however the rows are shuffled.
        order = np.argsort(rows, kind="stable")
        groups = np.searchsorted(self._ends, rows[order], side="right")

        def put(position: int, content: bytes) -> None:
            try:
                images[position] = decoded(content, size, recipe)
            except InputError as error:
                raise InputError(f"row {rows[position]} of {self._split.path}: {error}") from error

        waiting = []
        for group in np.unique(groups):
            with self._lock:
                column = self._file.read_row_group(int(group), columns=[IMAGE])[IMAGE]
            start = int(self._ends[group]) - len(column)
            for position in order[groups == group]:
                content = column[int(rows[position]) - start].as_buffer()
                if self._pool is None:
                    put(position, content)
                else:
                    waiting.append(self._pool.submit(put, position, content))
        for future in waiting:
            future.result()
        return images
