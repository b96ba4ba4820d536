"""Seven ways to spoil pictures of 32 pixels, each at one fixed severity.

The kinds are those with which the literature on model merging tests robustness; the severities are
ours, chosen on validation pictures so that each costs an expert some accuracy and none all of it.
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image
from scipy import ndimage

from apgd.errors import InputError

Rng = np.random.Generator
Array = np.ndarray

_BLUR_LENGTH = 5  # pixels along which the camera moves
_BLUR_DIRECTIONS = 8  # over half a turn
_IMPULSE_SHARE = 0.04  # of all pixels' channels
_NOISE_SD = 26.0  # grey levels
_COARSE = 14  # pixels per side that are left of the picture
_SPATTER_SIGMA = 1.6  # pixels; size of a drop
_SPATTER_LEVEL = 1.5  # standard deviations above which the field is a drop
_SPATTER_COVER = 0.75  # how opaque a drop is
_SPATTER_COLOURS = np.array([[175.0, 238.0, 238.0], [63.0, 42.0, 20.0]])  # water, mud
_CONTRAST = 0.5  # share that is left
_JPEG_QUALITY = 10


def corrupt(images: Array, kind: str, seed: int) -> Array:
    """Corrupted copies of pictures; the same arguments give the same copies.

    Args:
        images: uint8 (n, height, width, 3).
        kind: One of `CORRUPTIONS`.
        seed: Decides everything random.

    Returns:
        uint8 (n, height, width, 3).

    Raises:
        InputError: for an unknown kind, or pictures of another type or shape.
    """
    if kind not in _KINDS:
        raise InputError(f"unknown corruption {kind!r}; known are: {', '.join(CORRUPTIONS)}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"images must be uint8 of shape (n, h, w, 3), but got {images.dtype} {images.shape}"
        )
    rng = np.random.default_rng([seed, CORRUPTIONS.index(kind)])
    return _KINDS[kind](images, rng)


def _rounded(grey: Array) -> Array:
    whole: Array = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return whole


def _motion_blur(images: Array, rng: Rng) -> Array:
    direction = rng.integers(_BLUR_DIRECTIONS, size=len(images))
    blurred = np.empty_like(images)
    for k in range(_BLUR_DIRECTIONS):
        angle = np.pi * k / _BLUR_DIRECTIONS
        kernel = np.zeros((_BLUR_LENGTH, _BLUR_LENGTH))
        middle = _BLUR_LENGTH // 2
        for step in np.linspace(-middle, middle, 4 * _BLUR_LENGTH):
            row, column = round(step * np.sin(angle)), round(step * np.cos(angle))
            kernel[middle + row, middle + column] += 1.0
        kernel /= kernel.sum()
        chosen = images[direction == k].astype(np.float64)
        moved = ndimage.convolve(chosen, kernel[None, :, :, None], mode="nearest")
        blurred[direction == k] = _rounded(moved)
    return blurred


def _impulse_noise(images: Array, rng: Rng) -> Array:
    draw = rng.random(images.shape)
    spoiled = images.copy()
    spoiled[draw < _IMPULSE_SHARE / 2] = 0
    spoiled[draw > 1.0 - _IMPULSE_SHARE / 2] = 255
    return spoiled


def _gaussian_noise(images: Array, rng: Rng) -> Array:
    return _rounded(images + _NOISE_SD * rng.standard_normal(images.shape))


def _pixelate(images: Array, rng: Rng) -> Array:  # noqa: ARG001
    size = (images.shape[2], images.shape[1])
    return np.stack(
        [
            np.asarray(
                Image.fromarray(image)
                .resize((_COARSE, _COARSE), Image.Resampling.BOX)
                .resize(size, Image.Resampling.NEAREST)
            )
            for image in images
        ]
    )


def _spatter(images: Array, rng: Rng) -> Array:
    field = ndimage.gaussian_filter(
        rng.standard_normal(images.shape[:3]), sigma=(0.0, _SPATTER_SIGMA, _SPATTER_SIGMA)
    )
    field /= field.std(axis=(1, 2), keepdims=True)
    cover = _SPATTER_COVER * np.clip(2.0 * (field - _SPATTER_LEVEL), 0.0, 1.0)[..., None]
    colour = _SPATTER_COLOURS[rng.integers(2, size=len(images))][:, None, None, :]
    return _rounded((1.0 - cover) * images + cover * colour)


def _contrast(images: Array, rng: Rng) -> Array:  # noqa: ARG001
    mean = images.mean(axis=(1, 2), keepdims=True)
    return _rounded(mean + _CONTRAST * (images - mean))


def _jpeg_compression(images: Array, rng: Rng) -> Array:  # noqa: ARG001
    decoded = np.empty_like(images)
    for k, image in enumerate(images):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=_JPEG_QUALITY)
        with Image.open(stream) as coded:
            decoded[k] = np.asarray(coded)
    return decoded


_KINDS: Mapping[str, Callable[[Array, Rng], Array]] = MappingProxyType(
    {
        "motion_blur": _motion_blur,
        "impulse_noise": _impulse_noise,
        "gaussian_noise": _gaussian_noise,
        "pixelate": _pixelate,
        "spatter": _spatter,
        "contrast": _contrast,
        "jpeg_compression": _jpeg_compression,
    }
)
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)
"""The known kinds."""
