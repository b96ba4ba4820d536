"""`apgd merge` with methods that adapt to unlabelled inputs, and with APGD before a method."""

from pathlib import Path

import pytest
import torch

from apgd.checkpoints import load_weights
from apgd.cli import main
from apgd.suites import suites

SUITE = suites["mini_vision"]


def test_a_test_time_method_adapts_to_a_suites_inputs(
    vision_files: list[str], tmp_path: Path
) -> None:
    adapt = [*vision_files, "--method", "adamerging_layer_wise", "--suite", "mini_vision"]
    adapt += ["--inputs", "validation", "--learning-rate", "0.05"]
    assert main([*adapt, "--iterations", "0"]) == 0
    start = load_weights(tmp_path / "merged.safetensors", "merged")
    assert main([*vision_files, "--method", "task_arithmetic", "--suite", "mini_vision"]) == 0
    plain = load_weights(tmp_path / "merged.safetensors", "merged")
    for name, tensor in plain.items():
        torch.testing.assert_close(start[name], tensor)
    assert main([*adapt, "--iterations", "2"]) == 0
    found = load_weights(tmp_path / "merged.safetensors", "merged")
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert changed == {name for name, tensor in found.items() if SUITE.is_merged(name, tensor)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "doge_am"], "method doge_am needs unlabelled inputs, but got none"),
        (["--method", "ties", "--plug", "doge"], "invalid choice: 'doge'"),
        (["--method", "doge_ta", "--plug", "apgd"], "but doge_ta has it in it"),
        (["--method", "doge_am", "--suite", "mini_vision", "--expert", "x=y"], "expert x"),
    ],
)
def test_what_cannot_be_is_refused(
    vision_files: list[str], tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    try:
        status = main([*vision_files, *options])
    except SystemExit as stopped:  # by argparse
        status = int(stopped.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "merged.safetensors").exists()


def test_experts_must_be_named_after_tasks(
    vision_files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = [argument.replace("signs=", "sings=") for argument in vision_files]
    assert main([*renamed, "--method", "doge_am", "--suite", "mini_vision"]) == 2
    assert "must be named after tasks of suite mini_vision" in capsys.readouterr().err


def test_apgd_is_put_before_a_method_in_two_ways(vision_files: list[str], tmp_path: Path) -> None:
    quick = ["--apgd-iterations", "3", "--suite", "mini_vision"]
    assert main([*vision_files, "--method", "ties", "--plug", "apgd", *quick]) == 0
    first = load_weights(tmp_path / "merged.safetensors", "merged")
    assert main([*vision_files, "--method", "ties+apgd", *quick, "--apgd-eta", "0.07"]) == 0
    second = load_weights(tmp_path / "merged.safetensors", "merged")
    assert all(torch.equal(first[name], second[name]) for name in first)
