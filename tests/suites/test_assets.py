"""Files of the package whose hashes are pinned."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apgd.errors import InputError
from apgd.suites import _assets, suites
from apgd.suites._assets import PINNED, asset


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder, which is the package's for the time of a test."""
    folder = shutil.copytree(_assets._FOLDER, tmp_path / "assets")
    monkeypatch.setattr(_assets, "_FOLDER", folder)
    asset.cache_clear()
    yield folder
    asset.cache_clear()


def test_every_file_is_pinned(copied: Path) -> None:
    assert {path.name for path in copied.iterdir()} == set(PINNED)
    for name in PINNED:
        assert asset(name) == copied / name


@pytest.mark.parametrize("name", PINNED)
def test_a_flipped_bit_is_refused(name: str, copied: Path) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} must have the SHA-256 {PINNED[name][:12]}"):
        asset(name)


def test_a_suite_without_its_base_is_refused(copied: Path) -> None:
    (copied / "mini_vision.safetensors").unlink()
    with pytest.raises(InputError, match="git checkout -- mini_vision.safetensors"):
        suites["mini_vision"].base_path()
