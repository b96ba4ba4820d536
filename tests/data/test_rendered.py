import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from apgd.data import ImageExamples
from apgd.data.cache import cache_root
from apgd.data.rendered import RenderedStore
from apgd.errors import InputError


def make() -> ImageExamples:
    rng = np.random.default_rng(1)
    return ImageExamples(
        rng.integers(256, size=(20, 32, 32, 3), dtype=np.uint8), rng.integers(10, size=20)
    )


def refuse() -> ImageExamples:
    raise AssertionError("must come from the cache")


PINNED = make().sha256


def test_made_once_then_mapped(tmp_path: Path) -> None:
    first = RenderedStore(tmp_path).get("x", PINNED, make)
    store = RenderedStore(tmp_path)
    for _ in range(2):
        again = store.get("x", PINNED, refuse)
        assert isinstance(again.images, np.memmap)
        assert not again.images.flags.writeable
        np.testing.assert_array_equal(again.images, first.images)
        np.testing.assert_array_equal(again.labels, first.labels)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "missing", "text"])
def test_damaged_files_are_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    RenderedStore(tmp_path).get("x", PINNED, make)
    (path,) = tmp_path.rglob(name)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("not an array")
    assert RenderedStore(tmp_path).get("x", PINNED, make).sha256 == PINNED
    assert path.read_bytes() == content


def test_another_hash_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(InputError) as caught:
        RenderedStore(tmp_path).get("task cats, split test", wrong, make)
    message = str(caught.value)
    for part in ("task cats, split test", "000000000000", PINNED[:12], "pillow", "numpy"):
        assert part in message
    assert "matplotlib" in message
    assert not list(tmp_path.rglob("*.npy"))


def test_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    RenderedStore().get("x", PINNED, make)
    assert list((tmp_path / "here").rglob("images.npy"))
    monkeypatch.delenv("APGD_CACHE")
    assert cache_root() == Path.home() / ".cache" / "apgd"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "rendered").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="APGD_CACHE"):
        RenderedStore(tmp_path).get("x", PINNED, make)


def _fetch(root: Path) -> str:
    return RenderedStore(root).get("x", PINNED, make).sha256


def test_several_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_fetch, [tmp_path] * 8) == [PINNED] * 8
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["images.npy", "labels.npy"]
