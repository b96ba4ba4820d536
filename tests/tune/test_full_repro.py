"""The main job as a user runs it: whole, again, killed, and with its results read back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from apgd import InputError
from apgd.data import Split
from apgd.data.reader import LeakError
from apgd.finetune import ExpertSpec, expert_spec, find_expert, finetune
from apgd.suites import FinetuneSettings, suites
from experiments import full_repro
from tests.faults.held_worker import HeldWorker, Hold
from tests.signals import heard
from tune.cluster import plan, ray_session
from tune.evaluators import Evaluator, Purpose, ScoreJob, Workload
from tune.experiment import Experiment
from tune.records import Kind, Record, RecordStore, Variant
from tune.tracking import Tracker, synchronise
from tune.workers.pool import Job, WorkerPool

COMMAND = [sys.executable, "-m", "experiments.full_repro", "--smoke"]
LOCAL = ["--address", "local", "--cpus", "2"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with heard():
        return subprocess.Popen(
            [*COMMAND, *LOCAL, "--run-dir", "run", "--experts-dir", "experts", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=550)
    return output


def experiment_in(folder: Path, **fields: object) -> Experiment:
    return Experiment(
        smoke=True,
        run_dir=folder / "run",
        experts_dir=folder / "experts",
        **fields,  # type: ignore[arg-type]
    )


def results(folder: Path) -> dict[str, Record]:
    store = RecordStore(folder / "run")
    return {record.key: record for kind in Kind for record in store.all(kind)}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    process = start(folder)
    output = finish(process)
    assert process.returncode == 0, output
    return folder, output


def test_smoke_run_does_every_stage(smoke: tuple[Path, str]) -> None:
    folder, output = smoke
    for stage in ("data", "experts", "search", "evaluation", "report"):
        assert f"✓ {stage}" in output
    assert "2 CPU workers with 1 thread each" in output
    store = RecordStore(folder / "run")
    assert len(list(store.all(Kind.EXPERT))) == 8
    trials = list(store.all(Kind.TRIAL))
    assert sorted({(t.method, t.seed) for t in trials}) == [
        ("doge_ta", 0),
        ("task_arithmetic", 0),
        ("ties", 0),
    ]
    assert len(trials) == 9
    assert all(cell.startswith("validation/") for trial in trials for cell in trial.scores)
    rows = {(r.method, r.variant) for r in store.all(Kind.EVALUATION)}
    assert rows == {
        ("pretrained", Variant.REFERENCE),
        ("experts", Variant.REFERENCE),
        ("weight_averaging", Variant.PUBLISHED),
        ("task_arithmetic", Variant.PUBLISHED),
        ("task_arithmetic", Variant.TUNED),
        ("ties", Variant.PUBLISHED),
        ("ties", Variant.TUNED),
        ("doge_ta", Variant.PUBLISHED),
        ("doge_ta", Variant.TUNED),
    }


def test_records_hold_correctness_per_example(smoke: tuple[Path, str]) -> None:
    store = RecordStore(smoke[0] / "run")
    for record in store.all(Kind.EVALUATION):
        correct = store.answers(record)
        assert set(correct) == set(record.scores)
        for cell, hits in correct.items():
            assert len(hits) == 60
            assert hits.mean() == pytest.approx(record.scores[cell])


def test_winner_is_the_best_on_validation(smoke: tuple[Path, str]) -> None:
    store = RecordStore(smoke[0] / "run")
    for method in ("doge_ta", "ties", "task_arithmetic"):
        trials = [t for t in store.all(Kind.TRIAL) if t.method == method]
        best = max(trials, key=lambda t: (sum(t.scores.values()), -t.details["number"]))
        (row,) = [
            r
            for r in store.all(Kind.EVALUATION)
            if (r.method, r.variant) == (method, Variant.TUNED)
        ]
        assert row.params == best.params


def test_report_and_manifest_are_there(smoke: tuple[Path, str]) -> None:
    folder = smoke[0] / "run"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for word in ("DOGE TA", "Ties-Merging", "Handwriting", "Letters", "smoke"):
        assert word in page
    assert (folder / "report.md").stat().st_size > 1000
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    rows = [json.loads(path.read_text()) for path in (folder / "records/evaluation").glob("*.json")]
    # Where a search found nothing better, its row is the published one's, and read no data.
    scored = sum("same_as" not in row["details"] for row in rows)
    assert len(rows) == 9
    assert scored >= 6
    assert manifest["split_reads"] == {"validation": 9, "test": scored}
    assert len(manifest["hashes"]["experts"]) == 8
    assert len(manifest["hashes"]["base"]) == 64
    assert [stage["name"] for stage in manifest["stages"]] == [
        "data",
        "experts",
        "search",
        "singular vectors",
        "evaluation",
    ]


def check_mlflow(uri: str, records: dict[str, Record]) -> None:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("apgd/mini_vision")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert all(run.info.status == "FINISHED" for run in runs)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = parents
    children = {run.data.tags["apgd.key"]: run for run in runs if run is not parent}
    assert set(children) == set(records)
    assert len(runs) == len(records) + 1
    for key, record in records.items():
        run = children[key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for cell, accuracy in record.scores.items():
            assert run.data.metrics[cell] == pytest.approx(accuracy)
        for name, value in record.params.items():
            assert run.data.params[name] == str(value)
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "report.md", "manifest.json", "table.csv", "figures"} <= artifacts


def test_mlflow_has_every_record(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    check_mlflow(f"sqlite:///{folder / 'run' / 'mlflow.db'}", results(folder))


def test_a_dead_server_costs_one_warning_and_sync_completes(
    smoke: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = smoke
    warnings: list[str] = []
    dead = experiment_in(folder, tracking_uri="http://127.0.0.1:9")
    with Tracker(dead, warnings.append) as tracker:
        tracker.finish(complete=True)
    (warning,) = warnings
    assert "MLflow at http://127.0.0.1:9 could not be brought up to date" in warning
    assert "--sync" in warning
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    alive = experiment_in(folder, tracking_uri=uri)
    for sent in (26, 0):
        assert f"sent {sent} records" in synchronise(alive)
        check_mlflow(uri, results(folder))


def test_second_run_reuses_everything(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}
    assert len(before) == 8
    expected = results(folder)
    process = start(folder)
    output = finish(process)
    assert process.returncode == 0, output
    for stage, count in (("data", 26), ("experts", 8), ("search", 9), ("evaluation", 9)):
        (line,) = [line for line in output.splitlines() if line.startswith(f"✓ {stage}")]
        assert f"{count} reused" in line
        assert "done" not in line
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert results(folder) == expected


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.05)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver; Ray's processes notice and end by themselves."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()


@pytest.mark.slow
@pytest.mark.soak  # tests/faults do the same faster, to one seed
def test_killed_and_interrupted_runs_end_with_the_same_numbers(
    smoke: tuple[Path, str], tmp_path: Path
) -> None:
    run, chosen = tmp_path / "run" / "records", ("doge_ta",)
    process = start(tmp_path, "--methods", *chosen)
    wait_for(lambda: len(list((tmp_path / "experts").glob("*/manifest.json"))) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to Ray's processes too
    output = finish(process)
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output

    process = start(tmp_path, "--methods", *chosen)
    wait_for(lambda: len(list(run.glob("trial/*.json"))) >= 2, process)
    kill_tree(process)

    # The last start asks for a second seed besides.
    process = start(tmp_path, "--seeds", "2", "--methods", *chosen)
    output = finish(process)
    assert process.returncode == 0, output
    assert "seeds: 2" in output
    whole, found = results(smoke[0]), results(tmp_path)
    kept = (*chosen, "pretrained", "experts")
    expected = {
        key: record
        for key, record in whole.items()
        if record.kind is Kind.EXPERT or record.method in kept
    }
    assert len(expected) == 8 + 3 + 4  # experts, trials, rows
    assert {key for key, record in found.items() if record.seed == 0} == set(expected)
    assert sum(record.seed == 1 for record in found.values()) == len(expected) - 1  # no pretrained
    for key, record in expected.items():
        assert found[key].scores == record.scores
        assert found[key].params == record.params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nope"], "unknown suite 'nope'; known are: "),
        (["--methods", "ties", "nope"], "unknown method 'nope'; known are: "),
        (["--seeds", "0"], "seeds must be at least 1, but got 0"),
        (["--tracking-uri", "ftp://x"], "tracking-uri must start with"),
        (["--run-dir", "/proc/nope"], "the run folder must be writable, but /proc/nope"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert full_repro.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        full_repro.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in fields(Experiment):
        no = "no-" if field.default is True else ""
        assert f"--{no}{field.name.replace('_', '-')}" in text


def test_a_killed_worker_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    suite = suites["mini_vision"]
    settings = FinetuneSettings(steps=10, batch_size=16, learning_rate=1e-4, checkpoint_every=4)
    data = suite.examples("signs", Split.TRAIN).sha256
    spec: ExpertSpec = expert_spec(suite, "signs", 0, settings, data)
    whole = finetune(suite, spec, tmp_path / "whole")
    said: list[str] = []
    hold = Hold(tmp_path / "killed")
    with ray_session(address="local", cpus=1) as cluster:
        pool = WorkerPool(cluster, said.append, actor=HeldWorker)
        job = Job("train", (suite.name, spec, tmp_path / "killed"), "training signs", trains=True)
        (manifest,) = pool.run([job], on_progress=hold.when_held(psutil.Process.kill))
    assert hold.done
    assert said == ["worker 0 died while training signs; it is begun again"]
    assert manifest["resumed_at_step"] == 4
    resumed = find_expert(spec, tmp_path / "killed")
    assert resumed is not None
    assert resumed.sha256 == whole.sha256


def test_a_search_cannot_read_the_test_split(
    smoke: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = smoke
    suite = suites["mini_vision"]
    paths = [
        (task.name, str(next((folder / "experts").glob(f"*-{task.name}-*/weights.safetensors"))))
        for task in suite.tasks
    ]
    workload = Workload(suite.name, folder / "leak", ((0, tuple(paths)),), ((0, ()),), 20, 20)
    evaluator = Evaluator(workload, "cpu")
    job = ScoreJob(Purpose.SEARCH, "weight_averaging", Variant.TUNED, 0)
    # A search that were made to score test cells is stopped before it sees one.
    monkeypatch.setattr(Evaluator, "_cells", lambda _self, _job: iter([("test", "signs")]))
    with pytest.raises(LeakError, match="the test split of task signs must not be read"):
        evaluator.run(job)
    assert not list((folder / "leak").rglob("*.json"))


def test_work_is_cut_to_the_machine() -> None:
    laptop = plan(nodes=1, cpus=2, gpus=0, joined=False, most_workers=8)
    assert (laptop.workers, laptop.threads_per_worker) == (2, 1)
    server = plan(nodes=1, cpus=64, gpus=0, joined=False, most_workers=8)
    assert (server.workers, server.threads_per_worker) == (8, 8)
    gpus = plan(nodes=2, cpus=64, gpus=8, joined=True, most_workers=24)
    assert (gpus.workers, gpus.threads_per_worker) == (8, 8)
    assert gpus.worker_resources == {"num_gpus": 1, "num_cpus": 0}
    with pytest.raises(InputError, match="at least one CPU to work with, but has 0"):
        plan(nodes=1, cpus=0, gpus=0, joined=True, most_workers=8)
