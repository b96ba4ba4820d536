import io
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from apgd.data import Split
from apgd.data.examples import image_examples, is_ready
from apgd.data.pixel_cache import cache_path, cached, is_cached
from apgd.data.pixels import EncodedImages, Recipe, decoded
from apgd.data.prepared import PreparedSplit, prepare
from apgd.errors import InputError
from tests.data.real_columns import FORMS, encoded, image_dataset

SIZES = [(500, 375), (375, 500), (32, 32), (28, 28), (224, 224), (640, 241), (227, 224), (96, 301),
         (231, 224), (224, 229), (333, 250)]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    FORMS["parquet"](tmp_path / "copy")
    return prepare(image_dataset(), tmp_path / "copy").splits["test"]


def grey_levels(normalised: np.ndarray | torch.Tensor) -> np.ndarray:
    """(3, h, w) as the model gets it -> (h, w, 3) in 0 to 255."""
    channels = np.asarray(normalised).transpose(1, 2, 0).astype(np.float64)
    levels: np.ndarray = 255 * (
        channels * np.array(OPENAI_DATASET_STD) + np.array(OPENAI_DATASET_MEAN)
    )
    return levels


def by_transformers(image: Image.Image, size: int) -> np.ndarray:
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)
    return grey_levels(processor(image)["pixel_values"][0])


def by_open_clip(image: Image.Image, size: int) -> np.ndarray:
    return grey_levels(image_transform(size, is_train=False)(image))


REFERENCES = {Recipe.TRANSFORMERS: by_transformers, Recipe.OPEN_CLIP: by_open_clip}


@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_the_reference_does_it(recipe: Recipe, size: tuple[int, int]) -> None:
    content = encoded(7, size)
    ours = decoded(content, 224, recipe)
    with Image.open(io.BytesIO(content)) as image:
        theirs = REFERENCES[recipe](image, 224)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= 1


def test_where_the_references_part() -> None:
    # Half of a surplus of 3, 7, 11, ... pixels is rounded down by one, to even by the other.
    apart = []
    for surplus in range(12):
        content = encoded(8, (224 + surplus, 224))
        first, second = (decoded(content, 224, recipe) for recipe in Recipe)
        if not np.array_equal(first, second):
            apart.append(surplus)
            np.testing.assert_array_equal(first[:, 1:], second[:, :-1])
    assert apart == [3, 7, 11]


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rare(mode: str) -> bytes:
    with Image.open(io.BytesIO(encoded(9, (300, 260)))) as whole:
        if mode == "RGBA":
            whole.putalpha(whole.convert("L"))
            return saved(whole)
        return saved(whole.convert(mode), "JPEG" if mode == "CMYK" else "PNG")


@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_rare_formats_follow_their_recipe(recipe: Recipe, mode: str) -> None:
    content = rare(mode)
    with Image.open(io.BytesIO(content)) as image:
        theirs = REFERENCES[recipe](image, 224)
    assert np.abs(decoded(content, 224, recipe) - theirs).max() <= 1


def test_turned_upright_where_the_camera_says_how_it_was_held() -> None:
    upright = Image.open(io.BytesIO(encoded(3, (60, 40), "PNG")))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right of what is stored
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    content = saved(stored, exif=exif)
    np.testing.assert_array_equal(decoded(content, 32), decoded(saved(upright), 32))


@pytest.mark.parametrize("content", [b"", b"nothing", encoded(1)[:300]])
def test_what_cannot_be_decoded(content: bytes) -> None:
    with pytest.raises(InputError, match="must be decodable"):
        decoded(content, 16)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_array_that_is_never_whole(split: PreparedSplit, threads: int) -> None:
    rows = np.array([5, 0, 11, 5, 3])
    images = EncodedImages(split, rows, 16, threads=threads)
    whole = np.asarray(images)
    assert images.shape == whole.shape == (5, 16, 16, 3)
    assert images.dtype == whole.dtype == np.uint8
    assert len(images) == 5
    for index in (2, -1, slice(1, 4), slice(None), np.array([4, 0, 0]), [3, 1], np.array([], int),
                  rows == 5, slice(4, 9)):  # fmt: skip
        np.testing.assert_array_equal(images[index], whole[index])
    np.testing.assert_array_equal(images.take(slice(1, 3)), whole[1:3])
    np.testing.assert_array_equal(whole[0], whole[3])
    with pytest.raises(IndexError):
        images[5]


def test_encoded_images_are_pickled_without_their_file(split: PreparedSplit) -> None:
    images = EncodedImages(split, np.arange(12), 16, threads=2)
    whole = images[:]
    written = pickle.dumps(images)
    assert len(written) < 2000
    np.testing.assert_array_equal(pickle.loads(written)[:], whole)  # noqa: S301


def _compare(images: EncodedImages, whole: np.ndarray) -> None:
    np.testing.assert_array_equal(images[:], whole)


def test_encoded_images_after_a_fork(split: PreparedSplit) -> None:
    images = EncodedImages(split, np.arange(12), 16, threads=2)
    process = multiprocessing.get_context("fork").Process(target=_compare, args=(images, images[:]))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_groups_of_many_rows_are_read_right(tmp_path: Path) -> None:
    for i in range(150):
        for part in ("train", "test"):
            folder = tmp_path / "copy" / part / str(i % 3)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:03d}.png").write_bytes(encoded(i, (8, 8), "PNG"))
    dataset = image_dataset(corruptions=())
    split = prepare(dataset, tmp_path / "copy").splits["train"]
    order = np.random.default_rng(0).permutation(150)
    images = EncodedImages(split, order, 8, threads=2)[:]
    for image, row in zip(images, order, strict=True):
        number = (row % 50) * 3 + row // 50  # class folders are read one after the other
        np.testing.assert_array_equal(image, decoded(encoded(number, (8, 8), "PNG"), 8))


def test_decoded_once(split: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    images = EncodedImages(split, np.array([3, 1, 2]), 16, threads=1)
    assert not is_cached(images)
    first = cached(images)
    assert is_cached(images)
    with monkeypatch.context() as blind:
        blind.setattr(EncodedImages, "__getitem__", None)
        again = cached(images)
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(first, EncodedImages(split, np.array([3, 1, 2]), 16)[:])
    assert sorted(path.name for path in cache_path(images).parent.iterdir()) == [
        ".lock", "images.npy",
    ]  # fmt: skip


def test_what_the_cache_depends_on(split: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(3)
    paths = {
        cache_path(EncodedImages(split, rows, 16)),
        cache_path(EncodedImages(split, rows, 24)),
        cache_path(EncodedImages(split, rows[::-1].copy(), 16)),
        cache_path(EncodedImages(split, rows, 16, Recipe.OPEN_CLIP)),
    }
    with monkeypatch.context() as other:
        other.setattr("PIL.__version__", "99")
        paths.add(cache_path(EncodedImages(split, rows, 16)))
    assert len(paths) == 5
    assert cache_path(EncodedImages(split, rows, 16, threads=3)) in paths


@pytest.mark.parametrize("damage", ["truncated", "text", "other shape"])
def test_a_damaged_cache_is_made_anew(split: PreparedSplit, damage: str) -> None:
    images = EncodedImages(split, np.arange(12), 16, threads=1)
    before = np.array(cached(images))
    path = cache_path(images)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "text":
        path.write_text("not an array")
    else:
        np.save(path, before[:5])
    np.testing.assert_array_equal(cached(images), before)


def _decode_until(images: EncodedImages, count: int) -> None:
    def kill(done: int, _total: int) -> None:
        if done >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    cached(images, kill)


def test_killed_while_decoding_then_resumed(
    split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apgd.data.pixel_cache._CHUNK", 4)
    images = EncodedImages(split, np.array([4, 7, 1, 0, 11, 9, 8, 2, 3, 10, 6, 5]), 16, threads=1)
    process = multiprocessing.get_context("fork").Process(target=_decode_until, args=(images, 8))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not is_cached(images)
    told: list[tuple[int, int]] = []
    found = cached(images, lambda *what: told.append(what))
    assert told == [(12, 12)]  # only the last four
    np.testing.assert_array_equal(found, images[:])


def _fill(images: EncodedImages, log: Path) -> None:
    def write(done: int, _total: int) -> None:
        with log.open("a") as file:
            file.write(f"{done}\n")

    cached(images, write)


def test_several_processes_decode_once(split: PreparedSplit, tmp_path: Path) -> None:
    images = EncodedImages(split, np.arange(12), 64, threads=1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(images, tmp_path / "log")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "12\n"


def test_a_full_disk_is_said_before_anything_is_decoded(
    split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 1000})())
    with pytest.raises(InputError, match=r"must have .* GB for decoded images"):
        cached(EncodedImages(split, np.arange(12), 16))


def test_an_image_damaged_inside_is_named(tmp_path: Path) -> None:
    # Its header is right, so that preparing does not see it.
    for part in ("train", "test"):
        for name in ("0", "1", "2"):
            (tmp_path / "copy" / part / name).mkdir(parents=True)
            (tmp_path / "copy" / part / name / "a.jpg").write_bytes(encoded(1)[:900])
    dataset = image_dataset(corruptions=())
    prepare(dataset, tmp_path / "copy")
    with pytest.raises(InputError, match=r"row \d of .*test.parquet.*must be decodable"):
        image_examples(dataset, Split.TEST, size=16)


def test_which_splits_are_kept(split: PreparedSplit) -> None:
    dataset = image_dataset()
    assert not is_ready(dataset, Split.TEST, size=16)
    kinds = {part: type(image_examples(dataset, part, size=16).images) for part in Split}
    assert kinds == {
        Split.TRAIN: EncodedImages, Split.VALIDATION: np.memmap, Split.TEST: np.memmap,
    }  # fmt: skip
    assert all(is_ready(dataset, part, size=16) for part in Split)
    lazily = image_examples(dataset, Split.TEST, size=16, keep_pixels=False)
    kept = image_examples(dataset, Split.TEST, size=16)
    assert lazily.sha256 == kept.sha256
    np.testing.assert_array_equal(lazily.images[:], kept.images)
    assert kept.sha256 != image_examples(dataset, Split.TEST, size=24).sha256
    train = image_examples(dataset, Split.TRAIN, size=16, keep_pixels=True)
    assert isinstance(train.images, np.memmap)


def test_neither_is_read_as_the_other() -> None:
    from apgd.data.examples import text_examples
    from apgd.suites.facts import glue_datasets

    with pytest.raises(InputError, match="must have texts"):
        text_examples(image_dataset(), Split.TEST)
    with pytest.raises(InputError, match="must have images"):
        image_examples(glue_datasets()["rte"], Split.TEST, size=8)
