"""Merges from disk to disk: the same as in memory, whatever happens in between."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from apgd import InputError, MergeSummary, merge, merge_files
from apgd.checkpoints import INDEX, load_weights, open_weights, save_weights
from apgd.execution import Here
from apgd.streaming import SUMMARY, plan_shards
from apgd.task_vectors import TaskVectors
from tests.conftest import State, same_bits, save_shards

Make = Callable[..., tuple[State, dict[str, State]]]
States = tuple[State, dict[str, State]]
Files = tuple[Path, dict[str, Path]]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("doge_ta", {"iterations": 3, "learning_rate": 1e-3}),
    "exact": ("doge_ta", {"solver": "exact"}),
    "ties": ("ties", {"keep_ratio": 0.4}),
    "task_arithmetic": ("task_arithmetic", {}),
    "weight_averaging": ("weight_averaging", {}),
}
SMALL = 300  # bytes of a shard: four shards of the fixture's model
JOB = "merge.json"
Usage = namedtuple("Usage", "total used free")


class InterruptedMergeError(Exception):
    """Stands for whatever ends a merge."""


def after(shards: int) -> Callable[[int, int], None]:
    """A progress callback that ends the merge after some shards."""
    calls = []

    def progress(done: int, _total: int) -> None:
        calls.append(done)
        if len(calls) == shards + 1:  # the first call is before any shard
            raise InterruptedMergeError

    return progress


def merge_and_wait(base: Path, experts: dict[str, Path], out: Path, mark: Path) -> None:
    """Merge a half, leave a mark, and wait to be killed."""

    def progress(done: int, total: int) -> None:
        if done == total / 2:
            mark.touch()
            time.sleep(600)

    merge_files(
        "doge_ta", base, experts, out, shard_bytes=2**16, progress=progress, iterations=9
    )  # fmt: skip


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[n], second[n]) for n in first)


def loaded(path: Path) -> State:
    return load_weights(path, str(path))


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in shards_of(folder)}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_times(summary: MergeSummary) -> dict[str, Any]:
    values = summary.as_dict()
    del values["seconds"]
    return values | {"layers": [layer | {"seconds": 0} for layer in values["layers"]]}


def halved(state: State) -> State:
    return {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}


@pytest.fixture
def states(model: Make) -> States:
    """A base and three experts, with integers that are the same in all."""
    base, experts = model(3)
    integers = {"steps": torch.tensor(7), "mask": torch.tensor([[True, False]])}
    return base | integers, {name: state | integers for name, state in experts.items()}


@pytest.fixture
def files(tmp_path: Path, states: States) -> Files:
    base, experts = states
    paths = {name: tmp_path / f"{name}.safetensors" for name in experts}
    save_weights(tmp_path / "base.safetensors", base)
    for name, path in paths.items():
        save_weights(path, experts[name])
    return tmp_path / "base.safetensors", paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("name", list(METHODS))
class TestSameAsInMemory:
    def test_from_single_files_of_float32(
        self, name: str, states: States, files: Files, out: Path
    ) -> None:
        method, params = METHODS[name]
        summary = merge_files(method, *files, out, shard_bytes=SMALL, **params)
        expected = merge(method, *states, **params)
        assert len(shards_of(out)) > 2
        assert equal(loaded(out), expected)
        assert without_times(summary) == without_times(expected.summary)

    def test_from_shards_of_bfloat16(
        self, name: str, states: States, tmp_path: Path, out: Path
    ) -> None:
        method, params = METHODS[name]
        base, experts = halved(states[0]), {e: halved(s) for e, s in states[1].items()}
        folders = {e: save_shards(tmp_path / e, state, 3) for e, state in experts.items()}
        base_folder = save_shards(tmp_path / "base", base)
        merge_files(method, base_folder, folders, out, shard_bytes=SMALL // 2, **params)
        found = loaded(out)
        assert len(shards_of(out)) > 2
        assert equal(found, merge(method, base, experts, **params))
        assert found["tall"].dtype == torch.bfloat16
        assert not torch.equal(found["tall"], base["tall"])

    def test_with_several_threads(self, name: str, files: Files, out: Path, tmp_path: Path) -> None:
        method, params = METHODS[name]
        merge_files(method, *files, out, shard_bytes=SMALL, **params)
        torch.set_num_threads(3)
        merge_files(method, *files, tmp_path / "2", executor=Here(2**30), **params)
        assert equal(loaded(out), loaded(tmp_path / "2"))


class TestFolder:
    def test_the_index_places_every_tensor_and_counts_the_bytes(
        self, files: Files, states: States, out: Path
    ) -> None:
        merge_files("ties", *files, out, shard_bytes=SMALL)
        index = json.loads((out / INDEX).read_text())
        assert index["weight_map"].keys() == states[0].keys()
        assert set(index["weight_map"].values()) == {path.name for path in shards_of(out)}
        total = sum(t.numel() * t.itemsize for t in states[0].values())
        assert index["metadata"]["total_size"] == total

    def test_the_summary_is_what_is_returned(self, files: Files, out: Path) -> None:
        summary = merge_files("doge_ta", *files, out, shard_bytes=SMALL, iterations=2)
        written = json.loads((out / SUMMARY).read_text())
        assert MergeSummary.from_dict(written) == summary
        assert json.loads(json.dumps(summary.as_dict())) == written
        assert summary.not_merged == ("bias", "mask", "steps")
        assert [layer.name for layer in summary.layers] == ["row", "square", "tall", "wide"]

    def test_the_result_is_a_base_and_an_expert_of_other_merges(
        self, files: Files, states: States, out: Path, tmp_path: Path
    ) -> None:
        first = merge_files("task_arithmetic", *files, out, shard_bytes=SMALL)
        merged, experts = loaded(out), states[1]
        assert open_weights(out, "x").names() == tuple(sorted(merged))
        second = merge_files("ties", out, files[1] | {"more": out}, tmp_path / "second")
        expected = merge("ties", merged, experts | {"more": merged})
        assert equal(loaded(tmp_path / "second"), expected)
        assert second.experts == (*first.experts, "more")

    def test_types_are_the_bases(self, states: States, tmp_path: Path, out: Path) -> None:
        base = states[0] | {"tall": states[0]["tall"].half(), "wide": states[0]["wide"].double()}
        save_weights(tmp_path / "base.safetensors", base)
        paths = {"x": tmp_path / "x.safetensors"}
        save_weights(paths["x"], halved(states[1]["expert0"]))
        merge_files("weight_averaging", tmp_path / "base.safetensors", paths, out)
        found = loaded(out)
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in base.items()}
        assert equal(found, merge("weight_averaging", base, {"x": loaded(paths["x"])}))

    def test_shards_say_that_they_are_of_torch(self, files: Files, out: Path) -> None:
        merge_files("ties", *files, out, shard_bytes=SMALL)
        for path in shards_of(out):
            with safe_open(path, framework="pt") as file:
                assert file.metadata()["format"] == "pt"

    def test_select_chooses_what_is_merged(self, files: Files, states: States, out: Path) -> None:
        summary = merge_files("ties", *files, out, select=lambda name, _tensor: name == "wide")
        assert summary.not_merged == ("bias", "mask", "row", "square", "steps", "tall")
        found = loaded(out)
        assert {n for n in found if not same_bits(found[n], states[0][n])} == {"wide"}

    def test_configuration_and_tokenizer_are_copied_and_code_is_not(
        self, files: Files, states: States, tmp_path: Path, out: Path
    ) -> None:
        folder = save_shards(tmp_path / "base", states[0])
        copied = ("config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat.jinja")
        others = ("modeling_x.py", "pytorch_model.bin", "optimizer.pt", SUMMARY, JOB, "run.sh")
        for name in (*copied, *others):
            (folder / name).write_text(f"of the base: {name}")
        (folder / "sub.json").mkdir()
        merge_files("ties", folder, files[1], out)
        for name in copied:
            assert (out / name).read_text() == f"of the base: {name}"
        assert {p.name for p in out.iterdir()} == {
            *copied, INDEX, SUMMARY, JOB, "model-00001-of-00001.safetensors"
        }  # fmt: skip
        assert open_weights(out, "x").names() == tuple(sorted(states[0]))
        assert json.loads((out / JOB).read_text())["method"] == "ties"

    def test_progress_counts_the_models_entries(self, files: Files, out: Path) -> None:
        calls: list[tuple[int, int]] = []
        merge_files(
            "ties", *files, out, shard_bytes=SMALL, progress=lambda *call: calls.append(call)
        )
        total = sum(t.numel() for t in loaded(files[0]).values())
        assert calls[0] == (0, total)
        assert calls[-1] == (total, total)
        assert calls == sorted(set(calls))
        assert len(calls) == len(shards_of(out)) + 1
        calls.clear()
        merge_files("ties", *files, out, shard_bytes=SMALL, progress=lambda *c: calls.append(c))
        assert calls == [(total, total)]


@pytest.mark.parametrize("limit", [1, 100, SMALL, 10**6])
def test_shards_hold_every_name_once_and_are_as_large_as_asked(limit: int, states: States) -> None:
    vectors = TaskVectors(*states)
    sizes = {n: t.numel() * t.itemsize for n, t in states[0].items()}
    shards = plan_shards(vectors, limit)
    assert [name for shard in shards for name in shard.names] == sorted(sizes)
    totals = [sum(sizes[name] for name in shard.names) for shard in shards]
    assert all(
        t <= limit or len(s.names) == 1 for t, s in zip(totals, shards, strict=True)
    )  # fmt: skip
    count = len(shards)
    files = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [shard.file for shard in shards] == files


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
        for content in ("x = 1", "x = 2"):
            (tmp_path / "own.py").write_text(content)
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


class Elsewhere:
    """An executor that is not this process's own, and notes how much memory it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def map(self, function: Any, vectors: Any, items: Any, bytes_of: Any) -> Any:
        self.asked += bytes_of
        for index, item in enumerate(items):
            yield index, function(vectors, item)


def test_a_parameter_that_is_not_merged_needs_no_memory_for_a_merge(tmp_path: Path) -> None:
    base = {"embedding": torch.randn(500, 8), "matrix": torch.randn(4, 8)}
    save_weights(tmp_path / "base.safetensors", base)
    tuned = {name: value + 0.1 for name, value in base.items()}
    save_weights(tmp_path / "one.safetensors", tuned)
    elsewhere = Elsewhere()
    merge_files(
        "task_arithmetic",
        tmp_path / "base.safetensors",
        {"one": tmp_path / "one.safetensors"},
        tmp_path / "out",
        select=lambda name, _tensor: name == "matrix",
        executor=elsewhere,
    )
    assert max(elsewhere.asked) == 500 * 8 * 4  # what the embedding itself takes
