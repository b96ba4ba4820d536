"""Choices are checked at the door, and a run folder belongs to one experiment."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apgd import InputError
from apgd.masking import without_credentials
from apgd.suites import suites
from tune.experiment import Experiment, check, exclusive, run_id
from tune.experts import training_budget
from tune.workers.introductions import Introduction


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suite": "mini"}, "unknown suite 'mini'; known are: .*mini_vision"),
        ({"methods": ("ties", "tias")}, "unknown method 'tias'; known are: .*doge_ta"),
        ({"methods": ()}, "methods must name at least one"),
        ({"methods": ("ties", "ties")}, "methods must not repeat"),
        (
            {"references": ("experts", "joint")},
            "unknown reference 'joint'; known are: pretr",
        ),
        ({"references": ("experts", "experts")}, "references must not repeat"),
        ({"seeds": 0}, "seeds must be at least 1, but got 0"),
        ({"trials": -1}, "trials must be at least 1, but got -1"),
        ({"seeds": 1001}, "seeds must be at most 1000, but got 1001"),
        ({"cpus": 0}, "cpus must be at least 1, but got 0"),
        ({"gpus": -1}, "gpus must be at least 0, but got -1"),
        ({"storage": "studies"}, "storage must be a database .*, but got 'studies'"),
        ({"tracking_uri": "./mlruns"}, "tracking-uri must start with one of sqlite://"),
    ],
)
def test_bad_choices_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Experiment(**fields)  # type: ignore[arg-type]


def test_more_seeds_and_methods_extend_a_run_and_other_settings_do_not() -> None:
    folder = Experiment().folder
    assert Experiment(seeds=3, methods=("ties",), references=("ensemble",), cpus=1).folder == folder
    assert Experiment(trials=5).folder == folder
    assert Experiment(at_once=5).folder != folder
    assert Experiment(smoke=True).folder != folder


def test_published_corruption_protocols_take_all_test_images() -> None:
    robust = "clip_vit_b32_8_robustness"
    assert Experiment().corruption_limit == 500
    assert Experiment(suite=robust).corruption_limit is None
    assert Experiment(suite=robust, smoke=True).corruption_limit == 60


def test_a_folder_of_another_experiment_is_refused_and_kept(tmp_path: Path) -> None:
    first = Experiment(at_once=5, run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    check(first)
    check(first)
    before = (tmp_path / "run" / "experiment.json").read_bytes()
    other = Experiment(at_once=6, run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    with pytest.raises(InputError, match="holds another: at_once 5 there and 6 here"):
        check(other)
    assert (tmp_path / "run" / "experiment.json").read_bytes() == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        check(Experiment(run_dir=tmp_path, experts_dir=tmp_path / "experts"))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "[1]", '{"name": ', "{}"])
def test_a_damaged_experiment_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(InputError, match=r"experiment\.json must hold"):
        check(Experiment(run_dir=tmp_path, experts_dir=tmp_path / "experts"))


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match="the run folder must be writable, but .*file/run could not .*Not a dir"
    ):
        check(Experiment(run_dir=tmp_path / "file" / "run", experts_dir=tmp_path / "experts"))


def test_a_full_disk_is_noticed_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(
        "tune.experiment.shutil.disk_usage",
        lambda _path: type("Usage", (), {"free": 2**20, "total": usage.f_blocks})(),
    )
    experiment = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    with pytest.raises(InputError, match="needs about .* MiB .* but only 1 MiB are free"):
        check(experiment)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_fields_are_json() -> None:
    values = Experiment(run_dir=Path("a/b")).as_dict()
    assert json.loads(json.dumps(values))["run_dir"] == "a/b"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="must be a folder, but .* is a file"):
        check(Experiment(run_dir=tmp_path / "file", experts_dir=tmp_path / "experts"))


def test_what_a_killed_check_leaves_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".probe-17").write_text("")
    (tmp_path / "run" / ".experiment.json.x.part").write_text("{")
    check(Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts"))


def test_two_drivers_do_not_share_a_run_folder(tmp_path: Path) -> None:
    experiment = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    check(experiment)
    refused = pytest.raises(InputError, match=rf"process {os.getpid()} on .* is working in")
    with exclusive(experiment), refused, exclusive(experiment):
        pytest.fail("the second driver got in")
    with exclusive(experiment):
        pass


@pytest.mark.parametrize("same", [True, False])
def test_drivers_that_begin_at_once_have_one_claim(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    quick = slow if same else replace(slow, at_once=2)
    look, claims = shutil.disk_usage, list[str]()

    def overtaken(path: Path) -> Any:
        if not claims:  # the slow one has found no claim, and has not made one
            claims.append("")
            check(quick)
            claims[0] = run_id(quick.folder)
        return look(path)

    monkeypatch.setattr("tune.experiment.shutil.disk_usage", overtaken)
    if same:
        check(slow)
    else:
        with pytest.raises(InputError, match="holds another: at_once 2 there and 8 here"):
            check(slow)
    assert claims == [run_id(slow.folder)]


def test_a_claim_that_was_broken_off_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")

    def killed(_path: Path, _claim: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tune.experiment.write_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            check(begun)
    check(begun)


def test_sync_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--sync needs a run that was started before"):
        check(Experiment(sync=True, run_dir=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_credentials_are_masked() -> None:
    uri = "postgresql://user:secret@db.example/x"
    shown = json.dumps(Experiment(tracking_uri=uri).as_dict())
    assert "secret" not in shown
    assert "db.example" in shown
    assert without_credentials("a --tracking-uri http://me:pw@h/ b") == (
        "a --tracking-uri http://***@h/ b"
    )


def test_fine_tunings_memory_is_said_for_the_smallest_gpu() -> None:
    def worker(free: int | None) -> Introduction:
        return Introduction(
            machine="m", device="GPU", free_bytes=free, code="c", libraries=(), run_id="r"
        )

    suite = suites["flan_t5_large_glue"]
    budget = training_budget(suite, suite.finetune, [worker(80 * 10**9), worker(24 * 10**9)])
    assert budget is not None
    assert "flan_t5_large_glue: 21.3 GB" in budget.sentence
    assert "into 24 GB" in budget.sentence
    with pytest.raises(InputError, match="does not fit into 12 GB"):
        training_budget(suite, suite.finetune, [worker(12 * 10**9)])
    # Nothing to run out of on a CPU.
    assert training_budget(suite, suite.finetune, [worker(None)]) is None


def test_published_experts_are_checked_before_anything_starts() -> None:
    with pytest.raises(InputError, match="mini_vision has no published expert for scenes"):
        Experiment(experts="published")
    with pytest.raises(InputError, match="own, published or a folder, but got 'elsewhere'"):
        Experiment(experts="elsewhere")
    with pytest.raises(InputError, match="seeds must be 1"):
        Experiment(suite="clip_vit_b32_8", experts="published", seeds=3)
    with pytest.raises(InputError, match="tolerance must be positive, but got -1"):
        Experiment(tolerance=-1.0)
