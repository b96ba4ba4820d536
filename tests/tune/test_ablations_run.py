"""The ablations as a user runs them: a smoke run, and the same again."""

import csv
import json
from pathlib import Path

import pytest

from experiments import ablations
from tune.records import Kind, RecordStore

ONLY = ["--only", "learning_rate", "noise"]


@pytest.mark.slow
def test_a_smoke_run_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["--smoke", *ONLY, "--address", "local", "--cpus", "2"]
    arguments += ["--run-dir", str(folder), "--experts-dir", str(tmp_path / "experts")]
    assert ablations.main(arguments) == 0
    first = capsys.readouterr().out
    for stage in ("data", "experts", "learning_rate", "noise", "search", "noise: test"):
        assert f"✓ {stage}" in first
    store = RecordStore(folder)
    made = {kind: store.keys(kind) for kind in Kind}
    assert all(
        cell.startswith("validation/") for trial in store.all(Kind.TRIAL) for cell in trial.scores
    )
    for name in ONLY[1:]:
        with (folder / "ablations" / f"{name}.csv").open(encoding="utf-8") as file:
            assert {row["ablation"] for row in csv.DictReader(file)} == {name}
        assert (folder / "figures" / f"ablation_{name}.png").exists()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {kind: sorted(keys) for kind, keys in manifest["records"].items()} == made
    assert manifest["split_reads"] == {
        "test": len(made[Kind.EVALUATION]),
        "validation": len(made[Kind.TRIAL]),
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Learning rate", "Noise", "This is a smoke run", "ablation_noise"):
        assert text in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "![" in text
    assert "figures/ablation_learning_rate.png" in text
    points = (folder / "ablations" / "noise.csv").read_bytes()

    arguments.remove("learning_rate")  # which the report keeps all the same
    assert ablations.main(arguments) == 0
    second = capsys.readouterr().out
    stages = [line for line in second.splitlines() if line.startswith("✓")]
    assert stages
    assert all("done" not in line for line in stages), second
    assert {kind: store.keys(kind) for kind in Kind} == made
    assert (folder / "ablations" / "noise.csv").read_bytes() == points
    assert "figures/ablation_learning_rate.png" in (folder / "report.md").read_text("utf-8")
