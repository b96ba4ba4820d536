"""Merges from disk to disk: the same as in memory, in folders as others read them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from apgd import MergeSummary, merge, merge_files
from apgd.checkpoints import INDEX, open_weights, save_weights
from apgd.execution import Here
from apgd.streaming import SUMMARY, plan_shards
from apgd.task_vectors import TaskVectors
from tests.conftest import same_bits, save_shards
from tests.streaming.folders import (
    JOB,
    METHODS,
    SMALL,
    Files,
    States,
    equal,
    halved,
    loaded,
    shards_of,
    without_times,
)


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
