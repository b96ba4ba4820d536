"""`apgd merge` with methods that need statistics of training data."""

from pathlib import Path

import pytest
import torch

from apgd.checkpoints import load_weights
from apgd.cli import main
from apgd.commands import _evidence
from apgd.evidence import Need
from apgd.suites import suites
from apgd.training_statistics import StatisticSettings, collect
from tests.methods.statistics_files import merged

SUITE = suites["mini_vision"]
TASKS = ("signs", "aerial")
FEW = ["--suite", "mini_vision", "--statistics-examples", "2"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_evidence, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "statistics"


@pytest.mark.parametrize(("method", "need"), [("fisher", Need.FISHER), ("regmean", Need.GRAM)])
def test_statistics_are_computed_with_a_suite_and_kept(
    vision_files: list[str],
    method: str,
    need: Need,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*vision_files, "--method", method, *FEW, "--plan"]) == 0
    assert not list(tmp_path.rglob("*-signs-*.safetensors"))
    capsys.readouterr()
    assert main([*vision_files, "--method", method, *FEW]) == 0
    said = capsys.readouterr().err
    assert "statistics of signs (1 of 2)" in said
    assert "statistics of aerial (2 of 2)" in said
    found = load_weights(tmp_path / "merged.safetensors", "merged")
    experts = {task: load_weights(tmp_path / f"{task}.safetensors", task) for task in TASKS}
    settings = StatisticSettings(examples=2)
    given = {t: collect(need, SUITE, t, experts[t], settings) for t in TASKS}
    base = load_weights(SUITE.base_path(), "base")
    expected = merged(method, base, experts, given, select=SUITE.is_merged)
    assert all(torch.equal(found[n], expected[n]) for n in base)
    assert not torch.equal(found[next(iter(given["signs"]))], base[next(iter(given["signs"]))])

    # Into a folder: from what was kept.
    folder = [*vision_files, "--out", str(tmp_path / "folder")]
    assert main([*folder, "--method", method, *FEW]) == 0
    assert "statistics of" not in capsys.readouterr().err
    streamed = load_weights(tmp_path / "folder", "merged")
    assert all(torch.equal(streamed[n], expected[n]) for n in base)

    # From files that are named.
    named = [
        f"--statistics={p.name.split('-')[1]}={p}" for p in sorted(cache.glob("*.safetensors"))
    ]
    assert main([*vision_files, "--method", method, "--suite", "mini_vision", *named]) == 0
    again = load_weights(tmp_path / "merged.safetensors", "merged")
    assert all(torch.equal(again[n], expected[n]) for n in base)

    # Those are of no use to the other method, also where they have its shapes.
    other = {"fisher": "regmean", "regmean": "fisher"}[method]
    assert main([*vision_files, "--method", other, "--suite", "mini_vision", *named]) == 2
    wanted = {"fisher": "GRAM", "regmean": "FISHER"}[method]
    assert f"must be of the kind {wanted} for this method" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fisher"], "fisher needs Fisher information on training data, but got none"),
        (["--method", "regmean"], "regmean needs inner products"),
        (
            ["--method", "ties", "--statistics", "signs=x"],
            "--statistics must only be given to a method that needs them, but ties needs nothing",
        ),
        (
            ["--method", "fisher", "--statistics", "x"],
            "--statistics must be NAME=PATH, but got 'x'",
        ),
        (
            ["--method", "fisher", "--statistics", "other=x"],
            "--statistics must name each expert once, but got 'other'; experts are: signs, aerial",
        ),
        (
            ["--method", "fisher", "--statistics", "signs=none"],
            "the statistics of signs (none) does not exist",
        ),
        (
            ["--method", "fisher", "--statistics", f"signs={SUITE.base_path()}"],
            "--statistics must be given for every expert, but aerial has none",
        ),
        (
            ["--method", "fisher", *FEW, "--expert", f"other={SUITE.base_path()}"],
            "experts must be named after tasks of suite mini_vision, whose data the method "
            "needs, but got other; its tasks are: scenes,",
        ),
        (
            ["--method", "fisher", "--suite", "mini_vision", "--statistics-examples", "0"],
            "examples of statistics must lie in [1, 2147483648), but got 0",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    vision_files: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*vision_files, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "merged.safetensors").exists()
