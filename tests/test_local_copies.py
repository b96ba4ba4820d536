"""Experts on shared storage: copied once per machine, and never read where they are damaged."""

import os
from pathlib import Path

import pytest

from apgd import InputError, local_copies
from apgd.files import sha256_path
from apgd.local_copies import local_weights


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file on storage that is not this machine's own disk."""
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_copies, "_same_disk", lambda *_paths: False)
    monkeypatch.setattr(local_copies, "_known", {})
    file = tmp_path / "shared" / "weights.safetensors"
    file.parent.mkdir()
    file.write_bytes(os.urandom(5000))
    return file


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_on_the_same_disk_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    assert local_weights(file, sha256_path(file), "expert a") == file
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_it_crosses_the_network_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, copied = sha256_path(shared), []
    copy_file = local_copies.shutil.copyfile
    monkeypatch.setattr(
        local_copies.shutil, "copyfile", lambda *paths: copied.append(paths) or copy_file(*paths)
    )
    first = local_weights(shared, sha256, "expert a")
    assert first != shared
    assert first.read_bytes() == shared.read_bytes()
    local_copies._known.clear()  # as another process of the machine has it
    assert local_weights(shared, sha256, "expert a") == first
    assert len(copied) == 1


def test_a_damaged_original_is_refused_and_leaves_no_copy(shared: Path) -> None:
    sha256 = sha256_path(shared)
    flip(shared)
    with pytest.raises(InputError, match=f"expert a must have the hash {sha256[:12]} .* now"):
        local_weights(shared, sha256, "expert a")
    assert not list(Path(os.environ["APGD_CACHE"]).rglob("*.safetensors"))


def test_a_damaged_copy_is_fetched_again(shared: Path) -> None:
    sha256 = sha256_path(shared)
    copy = local_weights(shared, sha256, "expert a")
    flip(copy)
    assert local_weights(shared, sha256, "expert a") == copy
    assert sha256_path(copy) == sha256


def test_without_room_it_is_read_where_it_lies(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copies.shutil, "disk_usage", lambda _path: _Usage)
    assert local_weights(shared, sha256_path(shared), "expert a") == shared
    flip(shared)
    with pytest.raises(InputError, match="expert a must have the hash"):
        local_weights(shared, "0" * 64, "expert a")


class _Usage:
    free = 9999


def test_a_file_that_vanished_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="has nothing now"):
        local_weights(tmp_path / "gone.safetensors", "0" * 64, "expert a")


def test_an_adapter_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "config.json").write_text("{}")
    sha256 = sha256_path(adapter)
    assert local_weights(adapter, sha256, "expert a") == adapter
    (adapter / "config.json").write_text("[]")
    with pytest.raises(InputError, match="expert a must have the hash"):
        local_weights(adapter, sha256, "expert a")
