import numpy as np
import pytest

from apgd.data import Split
from apgd.data.rendering import (
    AERIAL,
    CLEAN,
    DIGITS,
    IMITATION,
    IMITATIONS,
    LANDCOVER,
    LETTERS,
    SCENES,
    SHAPES,
    SHIFTED,
    SIGNS,
    TEXTURES,
    VEHICLES,
    handwritten,
    render,
)
from apgd.data.rendering.canvas import Canvas, Pose

SUBJECTS = {
    "scenes": SCENES,
    "vehicles": VEHICLES,
    "aerial": AERIAL,
    "landcover": LANDCOVER,
    "numerals": DIGITS,
    "signs": SIGNS,
    "textures": TEXTURES,
    "letters": LETTERS,
    "shapes": SHAPES,
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_same_state_gives_the_same_pictures_in_either_style(name: str) -> None:
    subject = SUBJECTS[name]
    for style in (CLEAN, SHIFTED[name]):
        once = render(subject, style, 32, np.random.default_rng(1))
        again = render(subject, style, 32, np.random.default_rng(1))
        other = render(subject, style, 32, np.random.default_rng(2))
        assert once.images.shape == (32, 32, 32, 3)
        assert once.sha256 == again.sha256
        assert once.sha256 != other.sha256


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_class_appears_and_none_more_than_once_more(name: str) -> None:
    subject = SUBJECTS[name]
    classes = len(subject.class_names)
    labels = render(subject, CLEAN, 3 * classes + 1, np.random.default_rng(1)).labels
    counts = np.bincount(labels, minlength=classes)
    assert counts.min() == 3
    assert counts.max() == 4
    assert len(set(subject.class_names)) == classes
    assert 10 <= classes <= 16


@pytest.mark.parametrize("name", SUBJECTS)
def test_classes_look_different(name: str) -> None:
    subject = SUBJECTS[name]
    examples = render(subject, CLEAN, 8 * len(subject.class_names), np.random.default_rng(4))
    assert len(np.unique(examples.images.reshape(len(examples), -1), axis=0)) == len(examples)
    # A picture that is one grey level, or all black, shows nothing.
    assert examples.images.astype(float).std(axis=(1, 2, 3)).min() > 2.0


def test_shifted_pictures_are_not_the_clean_ones() -> None:
    for name, subject in SUBJECTS.items():
        clean = render(subject, CLEAN, 16, np.random.default_rng(1)).images.astype(float)
        shifted = render(subject, SHIFTED[name], 16, np.random.default_rng(1)).images
        assert np.abs(clean - shifted).mean() > 10.0, name


def test_imitations_are_white_on_black() -> None:
    images = render(IMITATIONS, IMITATION, 50, np.random.default_rng(1)).images.astype(float)
    assert np.median(images) < 10.0
    assert (images.max(axis=(1, 2, 3)) > 150.0).all()


def test_canvas_turns_clockwise_and_mirrors() -> None:
    canvas = Canvas(Pose(turn=90.0))
    canvas.disc(0.5, 0.0, 0.2, (255, 255, 255))  # to the right; turned, below the middle
    cover = canvas.pixels()[..., 3]
    assert cover[24, 16] == 255
    assert cover[16, 24] == 0
    mirrored = Canvas(Pose(mirrored=True))
    mirrored.disc(0.5, 0.0, 0.2, (255, 255, 255))
    assert mirrored.pixels()[16, 8, 3] == 255


def test_colours_are_multiplied_by_coverage() -> None:
    canvas = Canvas()
    canvas.disc(0.0, 0.0, 0.5, (200, 100, 0))
    pixels = canvas.pixels().astype(int)
    np.testing.assert_allclose(pixels[..., 0], 200 * pixels[..., 3] / 255, atol=2.0)


def test_handwriting_splits_share_no_digit_and_are_stratified() -> None:
    splits = {split: handwritten(split, np.random.default_rng(9)) for split in Split}
    assert [len(splits[split]) for split in Split] == [800, 200, 797]
    rows = np.concatenate([part.images.reshape(len(part), -1) for part in splits.values()])
    assert len(np.unique(rows, axis=0)) == 1797
    for part in splits.values():
        counts = np.bincount(part.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.03 * len(part)


def test_handwriting_is_what_scikit_learn_carries() -> None:
    test = handwritten(Split.TEST, np.random.default_rng(9))
    assert not test.images[:, :2].any()  # the frame around the enlarged digits is black
    np.testing.assert_array_equal(test.images[..., 0], test.images[..., 2])
