"""The tracking server is lost, or never answers: the run does not notice, and nothing is lost."""

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from apgd.errors import InputError
from apgd.files import write_json
from tests.faults.small_run import QUICK, SmallRun, assert_same
from tune import tracking
from tune.experiment import Experiment, run_id
from tune.experiment import check as check_and_claim
from tune.records import Kind, Record, RecordStore, Variant
from tune.tracking import Tracker, synchronise

Survived = Callable[..., None]
_BEFORE = "MLflow server lost before the run"
_DURING = "MLflow server lost during the run"
_AT_END = "MLflow server lost at the end of the run"
_HANGS = "MLflow server that accepts connections and never answers"
_SLOW = "MLflow server that answers too late"


def free_port() -> int:
    """A free port, below those that Linux gives to connections that go out."""
    while True:
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", random.randrange(20_000, 32_768)))
            return int(free.getsockname()[1])


class Server:
    """A real MLflow server on this machine; its database outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.answers, 200)

    def answers(self) -> bool:
        """Whether the server is there."""
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("mlflow"))
    one.start()
    yield one
    one.kill()


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, but for answers."""
    monkeypatch.setattr(tracking, "_INTERVAL_SECONDS", 0.1)
    for name, value in (("TIMEOUT", "30"), ("MAX_RETRIES", "1"), ("BACKOFF_FACTOR", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


def record(number: int) -> Record:
    return Record(
        kind=Kind.TRIAL,
        method="ties",
        variant=Variant.TUNED,
        seed=0,
        params={"scaling": 0.1 * number},
        inputs={"trial": f"study#{number}"},
        scores={"validation/signs": number / 100},
    )


def made_up(folder: Path, uri: str | None, count: int = 6) -> Experiment:
    """A run folder with some records."""
    experiment = Experiment(
        smoke=True, run_dir=folder / "run", experts_dir=folder / "experts", tracking_uri=uri
    )
    check_and_claim(experiment)
    add(experiment, range(count))
    return experiment


def add(experiment: Experiment, numbers: range) -> None:
    for number in numbers:
        RecordStore(experiment.folder).add(record(number))


def check(experiment: Experiment, status: str = "FINISHED") -> None:
    """MLflow has every record of a run once, and the run."""
    client = MlflowClient(tracking_uri=tracking.tracking_uri(experiment))
    place = client.get_experiment_by_name("apgd/mini_vision")
    runs = client.search_runs([place.experiment_id], max_results=5000)
    parents = [r for r in runs if r.data.tags["apgd.key"] == run_id(experiment.folder)]
    (parent,) = parents
    assert parent.info.status == status
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    store = RecordStore(experiment.folder)
    expected = {one.key: one for kind in Kind for one in store.all(kind)}
    assert sorted(r.data.tags["apgd.key"] for r in children) == sorted(expected)
    for run in children:
        one = expected[run.data.tags["apgd.key"]]
        assert run.info.status == "FINISHED"
        assert {n: run.data.metrics[n] for n in one.scores} == pytest.approx(dict(one.scores))
        assert {n: run.data.params[n] for n in one.params} == {
            n: str(v) for n, v in one.params.items()
        }


def finished(experiment: Experiment) -> int:
    """How many records MLflow has whole."""
    client = MlflowClient(tracking_uri=tracking.tracking_uri(experiment))
    place = client.get_experiment_by_name("apgd/mini_vision")
    if place is None:
        return 0
    runs = client.search_runs([place.experiment_id], max_results=5000)
    folder = experiment.folder.resolve()
    parents = [r.info.run_id for r in runs if r.data.tags["apgd.key"] == run_id(folder)]
    return sum(
        r.data.tags.get("mlflow.parentRunId") in parents and r.info.status == "FINISHED"
        for r in runs
    )


def wait_for(condition: Callable[[], bool], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.fault(_BEFORE)
def test_a_server_that_was_never_there(
    tmp_path: Path, server: Server, quickly: None, survived: Survived
) -> None:
    said: list[str] = []
    gone = Server(tmp_path)
    experiment = made_up(tmp_path, gone.uri)
    with Tracker(experiment, said.append):
        wait_for(lambda: bool(said))
        add(experiment, range(6, 12))
    (line,) = said
    assert f"MLflow at {gone.uri} could not be brought up to date" in line
    assert "results are on disk, send them later with --sync" in line
    with pytest.raises(InputError, match="results are on disk, and --sync may be run again"):
        synchronise(experiment)
    there = replace(experiment, tracking_uri=server.uri)
    for count in (12, 0):
        assert f"sent {count} records" in synchronise(there)
        check(there, "KILLED")  # it has no manifest
    survived(_BEFORE)


@pytest.mark.fault(_DURING)
@pytest.mark.fault(_AT_END)
def test_a_server_that_is_lost_and_comes_back(
    tmp_path: Path, server: Server, quickly: None, survived: Survived
) -> None:
    said: list[str] = []
    experiment = made_up(tmp_path, server.uri)
    tracker = Tracker(experiment, said.append)
    with tracker:
        wait_for(lambda: finished(experiment) == 6)
        assert said == []
        server.kill()
        add(experiment, range(6, 30))
        wait_for(lambda: len(said) == 1)
        assert "could not be brought up to date" in said[0]
        server.start()
        wait_for(lambda: len(said) == 2)
        assert "answers again, and has what it missed" in said[1]
        check(experiment, "RUNNING")
        survived(_DURING)
        add(experiment, range(30, 40))
        server.kill()
        tracker.finish(complete=True)
    assert "could not be brought up to date" in said[2]
    server.start()
    for _again in range(2):
        synchronise(experiment)
        check(experiment, "KILLED")
    survived(_AT_END)


@pytest.mark.fault(_HANGS)
def test_a_server_that_never_answers(
    tmp_path: Path,
    hanging: str,
    quickly: None,
    survived: Survived,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "_HURRIED_CLOSE_SECONDS", 3.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    asking: list[str] = []
    send = requests.Session.send

    def noted(*arguments: Any, **options: Any) -> Any:
        asking.append(threading.current_thread().name)
        return send(*arguments, **options)

    monkeypatch.setattr(requests.Session, "send", noted)
    said: list[str] = []
    experiment = made_up(tmp_path, hanging)
    with Tracker(experiment, said.append) as tracker:
        wait_for(lambda: len(said) == 1)
        # Whoever waited for an answer would do so for longer than this test may take.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
        add(experiment, range(6, 200))
        tracker.finish(complete=True)
    assert "could not be brought up to date" in said[0]
    assert asking
    assert set(asking) == {"mlflow"}  # whoever works never waits for it
    survived(_HANGS)


@pytest.mark.fault(_SLOW)
def test_answers_that_come_too_late_leave_no_run_twice(
    tmp_path: Path,
    server: Server,
    quickly: None,
    survived: Survived,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    experiment = made_up(tmp_path, server.uri)
    tracker = Tracker(experiment, said.append)
    with tracker:
        wait_for(lambda: finished(experiment) == 6)
        assert said == []
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        # It goes on taking requests, and does later what was asked more than once meanwhile.
        server.kill(signal.SIGSTOP)
        add(experiment, range(6, 20))
        wait_for(lambda: len(said) == 1)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        server.kill(signal.SIGCONT)
        wait_for(lambda: len(said) == 2)
        tracker.finish(complete=True)
    synchronise(experiment)
    check(experiment, "KILLED")
    survived(_SLOW)


def test_three_requests_for_each_record(
    tmp_path: Path, server: Server, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    send = requests.Session.send

    def noted(self: Any, request: Any, **options: Any) -> Any:
        asked.append(request.url)
        return send(self, request, **options)

    experiment = made_up(tmp_path, server.uri, count=50)
    monkeypatch.setattr(requests.Session, "send", noted)
    synchronise(experiment)
    assert len(asked) <= 3 * 50 + 20


def test_a_run_with_more_trials_is_brought_up_to_date(tmp_path: Path) -> None:
    experiment = made_up(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    manifest: dict[str, Any] = {
        "experiment": {"suite": "mini_vision", "trials": 24},
        "git_commit": "c0ffee",
        "stages": [{"name": "search", "seconds": 1.0}],
        "results": {"ties": 0.5},
    }
    for trials in (24, 48):
        manifest["experiment"]["trials"] = trials
        write_json(experiment.folder / "manifest.json", manifest)
        synchronise(experiment)
        check(experiment)
    client = MlflowClient(tracking_uri=tracking.tracking_uri(experiment))
    place = client.get_experiment_by_name("apgd/mini_vision")
    (parent,) = client.search_runs([place.experiment_id], "tags.`apgd.setting.trials` = '48'")
    assert parent.data.params == {"suite": "mini_vision"}


def test_a_damaged_database_of_a_run_is_put_aside(tmp_path: Path, quickly: None) -> None:
    whole, by_run, by_sync = (made_up(tmp_path / name, None) for name in ("whole", "run", "sync"))
    synchronise(whole)
    content = (whole.folder / "mlflow.db").read_bytes()
    for experiment in (by_run, by_sync):
        (experiment.folder / "mlflow.db").write_bytes(content[: len(content) // 2])
    lines: list[str] = []
    with Tracker(by_run, lines.append):
        pass
    lines += synchronise(by_sync).splitlines()
    for experiment, line in zip((by_run, by_sync), lines, strict=False):
        check(experiment, "KILLED")  # as it has no manifest
        assert line.startswith("MLflow's database was damaged (")
        assert line.endswith(
            "; it was put aside as mlflow.db.damaged, and a new one gets all records"
        )
        assert (experiment.folder / "mlflow.db.damaged").stat().st_size == len(content) // 2
    assert lines[2:] == [f"sent 6 records of {by_sync.folder} to {tracking.tracking_uri(by_sync)}"]


@pytest.mark.slow
@pytest.mark.soak  # it waits for a minute
@pytest.mark.fault(_HANGS)
def test_a_whole_run_is_not_slowed_by_a_server_that_never_answers(
    quick: Path, tmp_path: Path, hanging: str, survived: Survived
) -> None:
    run = SmallRun(tmp_path, (*QUICK, "--tracking-uri", hanging))
    # Whoever waited for an answer would do so for longer than the run may take.
    run.start(MLFLOW_HTTP_REQUEST_TIMEOUT="3600").end()
    assert f"MLflow at {hanging} is slow to answer; send the rest with --sync" in run.log()
    assert_same(tmp_path, quick)
    survived(_HANGS)


def test_a_database_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed:
        def __init__(self, tracking_uri: str) -> None:
            database = Path(tracking_uri.removeprefix("sqlite:///"))
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("CREATE TABLE assessments (id INTEGER)")

        def search_experiments(self, **_options: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient", Killed)
        with pytest.raises(KeyboardInterrupt):
            tracking._make(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []
    tracking._make(tmp_path / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    made = (tmp_path / "mlflow.db").read_bytes()
    tracking._make(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == made
