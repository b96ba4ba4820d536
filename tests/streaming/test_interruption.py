"""Merges from disk to disk that were broken off, and others in the same folder."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from apgd import InputError, merge, merge_files
from apgd.checkpoints import INDEX, save_weights
from tests.streaming.folders import (
    JOB,
    METHODS,
    SMALL,
    Files,
    InterruptedMergeError,
    after,
    content,
    equal,
    loaded,
    merge_and_wait,
    shards_of,
    times,
    without_times,
)


class TestInterruption:
    @pytest.mark.parametrize("name", list(METHODS))
    @pytest.mark.parametrize("done", [1, 3])
    def test_the_rest_is_done_later(
        self, name: str, done: int, files: Files, out: Path, tmp_path: Path
    ) -> None:
        method, params = METHODS[name]
        whole = merge_files(method, *files, tmp_path / "whole", shard_bytes=SMALL, **params)
        with pytest.raises(InterruptedMergeError):
            merge_files(method, *files, out, shard_bytes=SMALL, progress=after(done), **params)
        before = times(out)
        assert len(before) == done
        assert not (out / INDEX).exists()
        summary = merge_files(method, *files, out, shard_bytes=SMALL, **params)
        assert equal(loaded(out), loaded(tmp_path / "whole"))
        assert without_times(summary) == without_times(whole)
        assert before.items() <= times(out).items()

    def test_a_finished_merge_is_left_as_it_is(self, files: Files, out: Path) -> None:
        first = merge_files("doge_ta", *files, out, shard_bytes=SMALL, iterations=2)
        before = times(out)
        second = merge_files("doge_ta", *files, out, shard_bytes=SMALL, iterations=2)
        assert times(out) == before
        assert second.layers == first.layers

    def test_a_lost_shard_is_made_again(self, files: Files, out: Path) -> None:
        merge_files("ties", *files, out, shard_bytes=SMALL)
        weights, before = loaded(out), times(out)
        lost = shards_of(out)[1]
        lost.unlink()
        (out / INDEX).unlink()
        merge_files("ties", *files, out, shard_bytes=SMALL)
        assert equal(loaded(out), weights)
        now = times(out)
        assert {name for name in now if now[name] != before[name]} == {lost.name}

    def test_leftovers_are_removed_and_other_files_kept(self, files: Files, out: Path) -> None:
        with pytest.raises(InterruptedMergeError):
            merge_files("ties", *files, out, shard_bytes=SMALL, progress=after(1))
        leftovers = (".model-00002-of-00004.safetensors.k3x_.part", ".probe-123", ".x.json.a.part")
        for name in (*leftovers, "notes.txt"):
            (out / name).write_text("half")
        merge_files("ties", *files, out, shard_bytes=SMALL)
        assert not any((out / name).exists() for name in leftovers)
        assert (out / "notes.txt").read_text() == "half"

    def test_killed_before_anything_was_written(self, files: Files, out: Path) -> None:
        out.mkdir()
        (out / f".{JOB}.k3x_.part").write_text("{")
        merge_files("ties", *files, out)

    def test_a_truncated_shard_is_written_again(self, files: Files, out: Path) -> None:
        merge_files("ties", *files, out, shard_bytes=SMALL)
        weights, damaged = loaded(out), shards_of(out)[1]
        damaged.write_bytes(damaged.read_bytes()[:-4])
        merge_files("ties", *files, out, shard_bytes=SMALL)
        assert equal(loaded(out), weights)

    def test_a_shard_of_another_merge_is_made_again(
        self, files: Files, out: Path, tmp_path: Path
    ) -> None:
        merge_files("ties", *files, out, shard_bytes=SMALL)
        weights = loaded(out)
        merge_files("ties", *files, tmp_path / "other", shard_bytes=SMALL, coefficient=0.7)
        for shard in shards_of(tmp_path / "other")[:2]:
            shutil.copy(shard, out / shard.name)
        assert not equal(loaded(out), weights)
        merge_files("ties", *files, out, shard_bytes=SMALL)
        assert equal(loaded(out), weights)

    def test_a_killed_process_can_be_followed_by_another(self, tmp_path: Path, out: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        base = {f"w{i}": torch.randn(160, 160, generator=generator) for i in range(4)}
        paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "x", "y")}
        for path in paths.values():
            noise = torch.randn(160, 160, generator=generator)
            save_weights(path, {n: t + 0.05 * noise for n, t in base.items()})
        experts = {"x": paths["x"], "y": paths["y"]}
        merging = multiprocessing.get_context("spawn").Process(
            target=merge_and_wait, args=(paths["base"], experts, out, tmp_path / "waits")
        )
        merging.start()
        while not (tmp_path / "waits").exists() and merging.is_alive():
            time.sleep(0.01)
        merging.kill()
        merging.join()
        assert merging.exitcode == -signal.SIGKILL
        before = times(out)
        assert len(before) == 2
        merge_files("doge_ta", paths["base"], experts, out, shard_bytes=2**16, iterations=9)
        assert before.items() <= times(out).items()
        assert not list(out.glob(".*"))
        assert equal(loaded(out), merge("doge_ta", paths["base"], experts, iterations=9))


class TestAnotherMergeInTheFolder:
    @pytest.fixture
    def begun(self, files: Files, out: Path) -> Path:
        with pytest.raises(InterruptedMergeError):
            merge_files("ties", *files, out, shard_bytes=SMALL, progress=after(1))
        return out

    @pytest.mark.parametrize(
        ("change", "differing"),
        [
            ({"method": "task_arithmetic"}, "method and params"),
            ({"coefficient": 0.31}, "params"),
            ({"select": lambda name, _tensor: name in ("tall", "wide")}, "merged"),
            ({"shard_bytes": 400}, "shards"),
        ],
    )
    def test_what_differs_is_named(
        self, change: dict[str, Any], differing: str, files: Files, begun: Path
    ) -> None:
        before = content(begun)
        options: dict[str, Any] = {"method": "ties", "shard_bytes": SMALL, **change}
        with pytest.raises(InputError, match=rf"another merge, with other {differing}.*--overw"):
            merge_files(options.pop("method"), *files, begun, **options)
        assert content(begun) == before

    def test_experts_fewer_renamed_or_changed_differ(self, files: Files, begun: Path) -> None:
        base, experts = files
        fewer = {name: experts[name] for name in ("expert0", "expert1")}
        renamed = {name.upper(): path for name, path in experts.items()}
        for other in (fewer, renamed):
            with pytest.raises(InputError, match="another merge, with other (experts and )?inputs"):
                merge_files("ties", base, other, begun, shard_bytes=SMALL)
        changed = loaded(experts["expert1"])
        changed["bias"] += 1
        save_weights(experts["expert1"], changed)
        with pytest.raises(InputError, match="another merge, with other (experts and )?inputs"):
            merge_files("ties", base, experts, begun, shard_bytes=SMALL)

    def test_experts_in_another_order_differ(self, files: Files, begun: Path) -> None:
        turned = dict(reversed(files[1].items()))
        with pytest.raises(InputError, match="another merge"):
            merge_files("ties", files[0], turned, begun, shard_bytes=SMALL)

    def test_other_code_differs(
        self, files: Files, begun: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("apgd.streaming.source_hash", lambda *_modules: "000000000000")
        with pytest.raises(InputError, match=r"another merge, with other code"):
            merge_files("ties", *files, begun, shard_bytes=SMALL)

    def test_code_of_methods_from_elsewhere_counts(self, tmp_path: Path) -> None:
        """As of a file in a folder that APGD_METHODS names."""
        text = (
            "from apgd.methods import methods\nfrom apgd.streaming import job_of\n"
            "from apgd.task_vectors import TaskVectors\nimport torch\n"
            "vectors = TaskVectors({'w': torch.ones(2, 2)}, {'a': {'w': torch.ones(2, 2)}})\n"
            "method = methods['ties']\n"
            "print(job_of(method, method.parse({}), vectors, [])['code'])"
        )
        found = set()
        for source in ("x = 1", "x = 2"):
            (tmp_path / "own.py").write_text(source)
            found.add(
                subprocess.run(
                    [sys.executable, "-c", text], env={**os.environ, "APGD_METHODS": str(tmp_path)},
                    capture_output=True, text=True, check=True,
                ).stdout
            )  # fmt: skip
        assert len(found) == 2

    def test_overwrite_replaces_it(self, files: Files, begun: Path, tmp_path: Path) -> None:
        (begun / "notes.txt").write_text("mine")
        merge_files("doge_ta", *files, begun, shard_bytes=600, overwrite=True, iterations=2)
        merge_files("doge_ta", *files, tmp_path / "2", shard_bytes=600, iterations=2)
        assert {p.name for p in shards_of(begun)} == {p.name for p in shards_of(tmp_path / "2")}
        assert equal(loaded(begun), loaded(tmp_path / "2"))
        assert (begun / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("text", ["{}", "[]", "not JSON"])
    def test_a_foreign_file_of_that_name_is_an_input_error(
        self, text: str, files: Files, out: Path
    ) -> None:
        out.mkdir()
        (out / JOB).write_text(text)
        with pytest.raises(InputError, match=JOB):
            merge_files("ties", *files, out)
