"""Merges from disk to disk that are refused, with nothing lost and nothing left behind."""

import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from apgd import InputError, merge_files
from apgd.checkpoints import INDEX, open_weights, save_weights
from tests.conftest import save_shards
from tests.streaming.folders import (
    METHODS,
    SMALL,
    Files,
    InterruptedMergeError,
    Usage,
    after,
    content,
    equal,
    loaded,
    shards_of,
)


class TestForeignFolder:
    def test_it_is_refused_and_left_alone(self, files: Files, out: Path) -> None:
        out.mkdir()
        (out / "model-00001-of-00001.safetensors").write_text("precious")
        (out / "thesis.txt").write_text("precious")
        before = content(out)
        with pytest.raises(InputError, match=r"not of a merge, the first being model-00001-of"):
            merge_files("ties", *files, out)
        assert content(out) == before

    def test_an_empty_one_is_used(self, files: Files, out: Path) -> None:
        out.mkdir()
        merge_files("ties", *files, out)
        assert loaded(out)

    def test_overwrite_replaces_weights_and_nothing_else(
        self, files: Files, out: Path, tmp_path: Path
    ) -> None:
        save_shards(out, {"old": torch.ones(2), "older": torch.ones(2)})
        (out / "thesis.txt").write_text("precious")
        merge_files("ties", *files, out, overwrite=True)
        merge_files("ties", *files, tmp_path / "2")
        assert equal(loaded(out), loaded(tmp_path / "2"))
        assert len(shards_of(out)) == 1
        assert (out / "thesis.txt").read_text() == "precious"

    def test_overwrite_leaves_no_second_model(self, files: Files, out: Path) -> None:
        out.mkdir()
        shutil.copy(files[0], out / "model.safetensors")
        merge_files("ties", *files, out, overwrite=True)
        assert not (out / "model.safetensors").exists()

    def test_an_input_is_never_overwritten(self, files: Files, tmp_path: Path) -> None:
        merge_files("ties", *files, tmp_path / "base")
        before = content(tmp_path / "base")
        with pytest.raises(InputError, match="input"):
            merge_files("ties", tmp_path / "base", files[1], tmp_path / "base", overwrite=True)
        assert content(tmp_path / "base") == before


class TestRefusedBeforeAnythingIsWritten:
    def test_no_memory(self, files: Files, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("apgd.estimate.free_memory", lambda _device: 1000)
        with pytest.raises(InputError, match=r"wide \(6 x 15\) with 3 experts.*\(--expert\)"):
            merge_files("ties", *files, out)
        assert not out.exists()

    def test_no_disk(self, files: Files, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9 - 899, 899))
        with pytest.raises(InputError, match=r"GiB on disk.* write it elsewhere \(--out\)"):
            merge_files("ties", *files, out)
        assert not shards_of(out)

    def test_no_disk_leaves_no_folder(
        self, files: Files, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 0))
        with pytest.raises(InputError, match="on disk"):
            merge_files("ties", *files, out)
        assert not out.exists()

    def test_no_disk_keeps_what_would_be_overwritten(
        self, files: Files, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merge_files("ties", *files, out)
        before = content(out)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 0))
        with pytest.raises(InputError, match="on disk"):
            merge_files("ties", *files, out, overwrite=True, coefficient=0.5)
        assert content(out) == before

    def test_room_for_what_is_missing_is_enough(
        self, files: Files, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(InterruptedMergeError):
            merge_files("ties", *files, out, shard_bytes=SMALL, progress=after(3))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9 - 400, 400))
        merge_files("ties", *files, out, shard_bytes=SMALL)
        assert loaded(out)

    @pytest.mark.parametrize("size", [0, -1])
    def test_shards_without_a_size(self, size: int, files: Files, out: Path) -> None:
        with pytest.raises(InputError, match=f"above 0, but got {size}"):
            merge_files("ties", *files, out, shard_bytes=size)
        assert not out.exists()

    def test_a_folder_that_cannot_be_made(self, files: Files, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        with pytest.raises(InputError, match="the output folder must be writable, but .*file/out"):
            merge_files("ties", *files, tmp_path / "file" / "out")
        with pytest.raises(InputError, match="the output must be a folder, but .*file is a file"):
            merge_files("ties", *files, tmp_path / "file", overwrite=True)
        assert (tmp_path / "file").read_text() == "precious"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, files: Files, out: Path) -> None:
        out.mkdir(mode=0o555)
        with pytest.raises(InputError, match="the output folder must be writable"):
            merge_files("ties", *files, out)

    def test_an_unknown_parameter(self, files: Files, out: Path) -> None:
        with pytest.raises(InputError, match="unknown parameter 'eta' of method ties"):
            merge_files("ties", *files, out, eta=0.1)
        assert not out.exists()


class TestValuesThatAreNotFinite:
    @pytest.mark.parametrize("name", ["adam", "ties"])
    def test_methods_that_look_first_write_no_shard(
        self, name: str, files: Files, out: Path
    ) -> None:
        method, params = METHODS[name]
        self._spoil(files[1]["expert2"], "wide", math.nan)
        with pytest.raises(InputError, match="wide of expert expert2 .* holds NaN or infinite"):
            merge_files(method, *files, out, shard_bytes=SMALL, **params)
        assert not shards_of(out)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_the_shard_that_holds_them_is_not_written(
        self, value: float, files: Files, out: Path
    ) -> None:
        self._spoil(files[1]["expert2"], "tall", value)
        with pytest.raises(InputError, match="tall of expert expert2 .* holds NaN or infinite"):
            merge_files("task_arithmetic", *files, out, shard_bytes=SMALL)
        assert all("tall" not in open_weights(p, "x").names() for p in shards_of(out))
        assert not (out / INDEX).exists()
        assert not list(out.glob(".*"))

    def test_the_base_is_checked_where_nothing_is_merged(self, files: Files, out: Path) -> None:
        self._spoil(files[0], "bias", math.inf)
        with pytest.raises(InputError, match="bias of the base .* holds NaN or infinite"):
            merge_files("task_arithmetic", *files, out)
        assert not shards_of(out)

    def _spoil(self, path: Path, name: str, value: float) -> None:
        state = loaded(path)
        state[name].view(-1)[0] = value
        save_weights(path, state)
