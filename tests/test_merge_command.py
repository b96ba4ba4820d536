"""`apgd merge`, `apgd methods`, `apgd suites`, as a user types them."""

import argparse
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from apgd import MergeSummary, merge
from apgd.checkpoints import load_weights, read_metadata, save_weights
from apgd.cli import main
from apgd.execution import Executor, Here
from apgd.streaming import SUMMARY
from tests.conftest import State, same_bits, save_shards

Make = Callable[..., tuple[State, dict[str, State]]]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def files(tmp_path: Path, model: Make) -> list[str]:
    base, experts = model(2)
    save_weights(tmp_path / "base.safetensors", base)
    arguments = ["merge", "--base", str(tmp_path / "base.safetensors")]
    for name, state in experts.items():
        save_weights(tmp_path / f"{name}.safetensors", state)
        arguments += ["--expert", f"{name}={tmp_path / name}.safetensors"]
    return [*arguments, "--out", str(tmp_path / "merged.safetensors")]


def test_merge_writes_what_the_library_returns(
    files: list[str], tmp_path: Path, model: Make
) -> None:
    arguments = ["--method", "doge_ta", "--eta", "0.1", "--keep-ratio", "0.5", "--iterations", "3"]
    assert main([*files, *arguments]) == 0
    merged = load_weights(tmp_path / "merged.safetensors", "merged")
    expected = merge("doge_ta", *model(2), eta=0.1, keep_ratio=0.5, iterations=3)
    assert all(torch.equal(merged[n], expected[n]) for n in expected)
    written = read_metadata(tmp_path / "merged.safetensors")
    assert written["method"] == "doge_ta"
    assert written["params"] == {"eta": 0.1, "keep_ratio": 0.5, "iterations": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "dogs"], "unknown method 'dogs'; known are: "),
        (["--method", "ties", "--keep-ratio", "0"], "keep_ratio must lie in (0, 1], but got 0.0"),
        (["--method", "ties", "--expert", "x"], "--expert must be NAME=PATH, but got 'x'"),
        (["--method", "ties", "--expert", "x=none"], "expert x (none) does not exist"),
        (["--method", "ties", "--out", "none/x"], "the folder of --out must exist"),
        (
            ["--method", "ties", "--eta", "1"],
            "unknown argument '--eta'; the parameters of ties are",
        ),
        (["--method", "ties", "--keep-rate", "1"], "are: --coefficient, --keep-ratio"),
        (["--method", "ties", "--suite", "nope"], "unknown suite 'nope'"),
        (
            ["--method", "doge_ta", "--solver", "newton"],
            "solver must be one of adam, exact, but got 'newton'",
        ),
        (["--method", "doge_ta", "--tolerance", "0"], "tolerance must lie in (0, 1], but got 0.0"),
        (
            ["--method", "doge_ta", "--basis-size", "2"],
            "basis_size must not exceed the rank of the merged matrices, which is 1, but got 2",
        ),
        (["--method", "ties", "--memory", "900TB"], "side by side (--memory)"),
        (["--method", "ties", "--expert", "expert0=x"], "experts must have different names"),
        (["--method", "ties", "--device", "quantum"], "--device must be one that torch has"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    files: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*files, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "merged.safetensors").exists()


def test_an_existing_file_is_kept(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merged.safetensors").write_text("precious")
    assert main([*files, "--method", "ties"]) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "merged.safetensors").read_text() == "precious"
    assert main([*files, "--method", "ties", "--overwrite"]) == 0
    assert load_weights(tmp_path / "merged.safetensors", "merged")


def test_lists_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    for word in ("doge_ta", "keep_ratio=0.3", "weight_averaging", "unlabelled inputs", "+apgd"):
        assert word in listed
    assert main(["methods", "doge_ta", "ties+apgd"]) == 0
    listed = capsys.readouterr().out
    for word in ("keep_ratio", "(0, 1]", "0.01 to 1, log", "ICML 2025", "apgd_eta"):
        assert word in listed
    assert main(["methods", "doge"]) == 2
    assert "unknown method 'doge'" in capsys.readouterr().err
    assert main(["suites"]) == 0
    listed = capsys.readouterr().out
    for word in ("mini_vision", "clip_vit_b32_8", "clip_vit_l14_20", "87.8 M"):
        assert word in listed
    assert main(["suites", "mini_vision"]) == 0
    listed = capsys.readouterr().out
    for word in ("handwriting", "letters", "made here", "--suite mini_vision"):
        assert word in listed
    assert "--gpus" not in listed  # a head without GPU is enough
    assert main(["suites", "flan_t5_large_glue_lora"]) == 0
    listed = capsys.readouterr().out
    for word in (
        "spearman",
        "LoRA of rank 16",
        "into 24 GB",
        "data prepare",
        "--compare",
        "--gpus 8",
    ):
        assert word in listed


def test_help_explains_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["merge", "--method", "doge_ta", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--eta", "--basis-size", "--shared-basis-size", "--iterations", "400"):
        assert option in text
    assert "--coefficient" not in text
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    assert "name one to see them here" in " ".join(capsys.readouterr().out.split())


def tree(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestFolder:
    def test_it_holds_what_the_library_returns(
        self, files: list[str], tmp_path: Path, model: Make
    ) -> None:
        out = tmp_path / "merged"
        arguments = ["--method", "doge_ta", "--solver", "exact", "--shard-size", "300"]
        assert main([*files, *arguments, "--out", str(out)]) == 0
        expected = merge("doge_ta", *model(2), solver="exact")
        found = load_weights(out, "merged")
        assert found.keys() == expected.keys()
        assert all(same_bits(found[n], expected[n]) for n in expected)
        assert len(list(out.glob("*.safetensors"))) == 4
        written = MergeSummary.from_dict(json.loads((out / SUMMARY).read_text()))
        assert written.params == expected.summary.params

    def test_a_second_run_changes_and_says_nothing(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "merged"
        command = [*files, "--method", "ties", "--shard-size", "300", "--out", str(out)]
        assert main(command) == 0
        first = capsys.readouterr()
        before = {p: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
        assert main(command) == 0
        second = capsys.readouterr()
        assert {p: p.stat().st_mtime_ns for p in out.glob("*.safetensors")} == before
        told = [text.split(" in ")[0] for text in (first.out, second.out)]
        assert told[0] == told[1]
        assert first.err.split("; ")[0] == second.err.split("; ")[0]

    def test_another_merge_in_it_is_replaced_on_demand(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Make
    ) -> None:
        command = [*files, "--out", str(tmp_path / "merged")]
        assert main([*command, "--method", "ties"]) == 0
        before = tree(tmp_path)
        assert main([*command, "--method", "ties", "--coefficient", "0.5"]) == 2
        error = capsys.readouterr().err
        assert "holds another merge, with other params" in error
        assert "replace it with --overwrite" in error
        assert tree(tmp_path) == before
        assert main([*command, "--method", "ties", "--coefficient", "0.5", "--overwrite"]) == 0
        expected = merge("ties", *model(2), coefficient=0.5)
        assert same_bits(load_weights(tmp_path / "merged", "x")["wide"], expected["wide"])

    def test_a_base_may_be_a_folder(self, files: list[str], tmp_path: Path, model: Make) -> None:
        base, experts = model(2)
        save_shards(tmp_path / "base", base)
        (tmp_path / "base" / "config.json").write_text("{}")
        out = tmp_path / "merged"
        command = [*files, "--method", "ties", "--base", str(tmp_path / "base"), "--out", str(out)]
        assert main(command) == 0
        assert same_bits(load_weights(out, "x")["tall"], merge("ties", base, experts)["tall"])
        assert (out / "config.json").read_text() == "{}"

    def test_it_is_finished_with_room_for_what_is_missing(
        self, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "merged"
        command = [*files, "--method", "ties", "--shard-size", "300", "--out", str(out)]
        assert main(command) == 0
        (out / "model-00004-of-00004.safetensors").unlink()
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1000, 600, 400))
        assert main(command) == 0


@pytest.mark.parametrize("out", ["planned.safetensors", "planned"])
def test_a_plan_writes_nothing(
    out: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tmp_path)
    arguments = ["--method", "doge_ta", "--plan", "--out", str(tmp_path / out)]
    assert main([*files, *arguments, "--summary", str(tmp_path / "summary.json")]) == 0
    said = capsys.readouterr()
    assert "in 4 matrices: 0.3 GiB of memory" in said.err
    assert "to write; about" in said.err
    assert said.out == ""
    assert tree(tmp_path) == before
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["merged.safetensors", "merged"])
def test_the_summary_is_written_where_asked(
    out: str, files: list[str], tmp_path: Path, model: Make
) -> None:
    path = tmp_path / "summary.json"
    arguments = ["--method", "doge_ta", "--iterations", "3", "--out", str(tmp_path / out)]
    assert main([*files, *arguments, "--summary", str(path)]) == 0
    found = MergeSummary.from_dict(json.loads(path.read_text()))
    expected = merge("doge_ta", *model(2), iterations=3).summary
    assert [(x.name, x.shape, x.task_norms, x.details) for x in found.layers] == [
        (x.name, x.shape, x.task_norms, x.details) for x in expected.layers
    ]
    assert (found.method, found.params) == (expected.method, expected.params)
    assert (found.experts, found.not_merged) == (expected.experts, expected.not_merged)
    if out == "merged":
        assert json.loads((tmp_path / out / SUMMARY).read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize("target", ["expert1.safetensors", "merged.safetensors"])
def test_the_summary_overwrites_no_weights(target: str, files: list[str], tmp_path: Path) -> None:
    assert main([*files, "--method", "ties", "--summary", str(tmp_path / target)]) == 2


def test_a_summary_that_cannot_be_written_is_refused_before(
    files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*files, "--method", "ties", "--summary", str(tmp_path / "file" / "x.json")]) == 2
    assert not (tmp_path / "merged.safetensors").exists()


class TestDetails:
    @pytest.mark.parametrize("method", ["doge_ta", "ties", "weight_averaging"])
    def test_every_matrix_is_listed(
        self, method: str, files: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*files, "--method", method, "--details"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, shape in (("row", "1 x 7"), ("tall", "12 x 5"), ("wide", "6 x 15")):
            [line] = [line for line in lines if f" {name} " in line]
            assert shape in line
        assert not any(" bias " in line for line in lines)

    def test_long_names_are_whole(
        self, tmp_path: Path, model: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = [f"vision_model.encoder.layers.{i}.self_attn.out_proj.weight" for i in (10, 11)]
        command = ["merge", "--method", "ties", "--details", "--out", str(tmp_path / "out")]
        base, experts = model(1)
        for option, state in (("--base", base), ("--expert", experts["expert0"])):
            path = tmp_path / f"{option}.safetensors"
            save_weights(path, dict.fromkeys(names, state["wide"]))
            command.append(f"{option}={'x=' if option == '--expert' else ''}{path}")
        assert main(command) == 0
        listed = capsys.readouterr().out
        assert all(name in listed for name in names)


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1000000", 10**6),
            ("300B", 300),
            ("8GB", 8 * 10**9),
            ("8G", 8 * 10**9),
            ("512MiB", 512 * 2**20),
            ("512 mib", 512 * 2**20),
            ("1.5KiB", 1536),
            ("2Ti", 2 * 2**40),
        ],
    )
    def test_units(self, text: str, size: int, files: list[str]) -> None:
        seen = []

        @contextmanager
        def executor(options: argparse.Namespace) -> Iterator[Executor]:
            seen.append((options.memory, options.shard_size))
            yield Here()

        arguments = ["--method", "ties", "--memory", text, "--shard-size", text]
        assert main([*files, *arguments], executor) == 0
        assert seen == [(size, size)]

    @pytest.mark.parametrize("option", ["--memory", "--shard-size"])
    @pytest.mark.parametrize("text", ["much", "", "-1", "5XB", "1e9", "inf", "1,5GB", "GB"])
    def test_bad_ones_end_with_status_two(
        self, option: str, text: str, files: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            main([*files, "--method", "ties", f"{option}={text}"])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert f"argument {option}: a size must look like 512MiB or 8GB, but got {text!r}" in error

    def test_shards_of_nothing_are_refused(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "merged"
        assert main([*files, "--method", "ties", "--shard-size", "0", "--out", str(out)]) == 2
        assert "must have a size in bytes above 0, but got 0" in capsys.readouterr().err
        assert not out.exists()

    def test_memory_does_not_change_the_result(
        self, files: list[str], tmp_path: Path, model: Make
    ) -> None:
        torch.set_num_threads(2)
        for number, memory in enumerate(("1", "1GB")):
            out = tmp_path / f"{number}.safetensors"
            arguments = ["--method", "doge_ta", "--iterations", "3", "--memory", memory]
            assert main([*files, *arguments, "--out", str(out)]) == 0
        assert (tmp_path / "0.safetensors").read_bytes() == (
            tmp_path / "1.safetensors"
        ).read_bytes()


class TestInputsAreSafe:
    @pytest.mark.parametrize("target", ["base.safetensors", "expert1.safetensors", "."])
    def test_a_file_and_its_folder(
        self, target: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = tree(tmp_path)
        command = [*files, "--method", "ties", "--overwrite", "--out", str(tmp_path / target)]
        assert main(command) == 2
        assert "must not be one of the inputs" in capsys.readouterr().err
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("target", ["x", "x/../x", "x/model.safetensors.index.json", "link"])
    def test_a_folder_of_shards(
        self, target: str, files: list[str], tmp_path: Path, model: Make
    ) -> None:
        save_shards(tmp_path / "x", model(1)[1]["expert0"])
        (tmp_path / "link").symlink_to(tmp_path / "x")
        before = tree(tmp_path)
        command = [*files, "--method", "ties", "--expert", f"x={tmp_path / 'x'}", "--overwrite"]
        assert main([*command, "--out", str(tmp_path / target)]) == 2
        assert tree(tmp_path) == before

    def test_a_folder_of_links(self, files: list[str], tmp_path: Path, model: Make) -> None:
        save_shards(tmp_path / "blobs", model(1)[1]["expert0"])
        (tmp_path / "x").mkdir()
        for path in (tmp_path / "blobs").iterdir():
            (tmp_path / "x" / path.name).symlink_to(path)
        before = tree(tmp_path)
        index = tmp_path / "x" / "model.safetensors.index.json"
        command = [*files, "--method", "ties", "--expert", f"x={index}", "--overwrite"]
        assert main([*command, "--out", str(tmp_path / "x")]) == 2
        assert tree(tmp_path) == before


def test_help_explains_the_solver_and_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "--method", "doge_ta", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--solver" in text
    assert "one of adam, exact (default: adam)" in text
    assert "--tolerance" in text
    assert "where the exact solver stops" in text
    assert "interrupted and resumed" in text
