import numpy as np
import pytest

from apgd.data.corruptions import CORRUPTIONS, corrupt
from apgd.data.rendering import CLEAN, VEHICLES, render
from apgd.errors import InputError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return render(VEHICLES, CLEAN, 40, np.random.default_rng(5)).images


def test_the_seven_kinds() -> None:
    assert CORRUPTIONS == (
        "motion_blur",
        "impulse_noise",
        "gaussian_noise",
        "pixelate",
        "spatter",
        "contrast",
        "jpeg_compression",
    )


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_same_arguments_give_the_same_pictures(kind: str, images: np.ndarray) -> None:
    before = images.copy()
    once, again = corrupt(images, kind, 3), corrupt(images, kind, 3)
    assert once.dtype == np.uint8
    assert once.shape == images.shape
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_picture_changes_but_not_beyond_recognition(kind: str, images: np.ndarray) -> None:
    change = np.abs(corrupt(images, kind, 3).astype(float) - images).mean(axis=(1, 2, 3))
    assert change.min() > 0.0
    assert 1.5 < change.mean() < 30.0


@pytest.mark.parametrize("kind", ["motion_blur", "impulse_noise", "gaussian_noise", "spatter"])
def test_seeds_differ(kind: str, images: np.ndarray) -> None:
    assert (corrupt(images, kind, 3) != corrupt(images, kind, 4)).any()


def test_contrast_keeps_the_mean_and_halves_the_spread(images: np.ndarray) -> None:
    flat = corrupt(images, "contrast", 0).astype(float)
    np.testing.assert_allclose(flat.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.5)
    np.testing.assert_allclose(flat.std(axis=(1, 2)), 0.5 * images.std(axis=(1, 2)), rtol=0.05)


def test_a_uniform_picture_stays_uniform_where_nothing_is_random() -> None:
    grey = np.full((2, 32, 32, 3), 90, dtype=np.uint8)
    for kind in ("motion_blur", "pixelate", "contrast"):
        np.testing.assert_array_equal(corrupt(grey, kind, 0), grey)


def test_read_only_and_no_pictures(images: np.ndarray) -> None:
    locked = images.copy()
    locked.flags.writeable = False
    for kind in CORRUPTIONS:
        corrupt(locked, kind, 0)
    assert corrupt(images[:0], "contrast", 0).shape == (0, 32, 32, 3)


def test_unknown_kind_lists_the_known_ones(images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"'fog'.*motion_blur.*jpeg_compression"):
        corrupt(images, "fog", 0)


def test_wrong_pictures_are_refused(images: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        corrupt(images.astype(np.float32), "contrast", 0)
