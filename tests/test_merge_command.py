"""`apgd merge`, `apgd methods`, `apgd suites`, as a user types them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import merge
from apgd.checkpoints import load_weights, read_metadata, save_weights
from apgd.cli import main
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]


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
        (["--method", "dogs"], "unknown method 'dogs'; known are: doge_ta"),
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
    for word in ("doge_ta", "keep_ratio", "(0, 1]", "weight_averaging", "ICML 2025"):
        assert word in listed
    assert main(["suites"]) == 0
    listed = capsys.readouterr().out
    for word in ("mini_vision", "handwriting", "mnist", "letters"):
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
