"""MLflow: a copy of what is on disk, sent by a thread that never stops the run.

A run is found again by the tag that holds its record's key, so sending twice changes nothing: that
is how `--sync` completes what a server missed. Where answers of a server are lost it may have made
a run twice; then the one that got nothing further is deleted.
"""

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from apgd.errors import InputError
from apgd.files import atomic_path
from apgd.masking import masked_address, without_secrets
from tune.databases import put_damaged_aside
from tune.experiment import Experiment, run_id
from tune.records import Kind, Record, RecordStore

_KEY = "apgd.key"
_PARENT = "mlflow.parentRunId"
_SETTLED = "apgd.settled"
"""Tag of a run folder's run, set once its identifier is known here."""
_INTERVAL_SECONDS = 3.0
_LONGEST_INTERVAL_SECONDS = 24.0
"""Between attempts at a server that does not answer."""
_CLOSE_SECONDS = 60.0
_HURRIED_CLOSE_SECONDS = 10.0
"""Where the run was interrupted, or the server did not answer lately."""
_SENDERS = 8
"""Requests to a server at a time: most of their time is waiting."""
_ENVIRONMENT = {
    # A dead server must not stall the sender for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    # Which would take another request for every run.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_ARTIFACTS = ("report.html", "report.md", "table.csv", "manifest.json")


def tracking_uri(experiment: Experiment) -> str:
    """The chosen tracking server, or else a database in the run folder."""
    return experiment.tracking_uri or f"sqlite:///{_own_database(experiment)}"


def _own_database(experiment: Experiment) -> Path:
    return (experiment.folder / "mlflow.db").resolve()


def _mend(experiment: Experiment, say: Callable[[str], None]) -> None:
    """Put a damaged database of the run folder aside."""
    if not experiment.tracking_uri:
        database = _own_database(experiment)
        put_damaged_aside(database, "MLflow's database", "a new one gets all records", say)


def _copy_of(experiment: Experiment) -> "MlflowCopy":
    own = None if experiment.tracking_uri else _own_database(experiment)
    name = f"apgd/{experiment.suite}"
    return MlflowCopy(experiment.folder, tracking_uri(experiment), name, own)


def _make(database: Path) -> None:
    """Make MLflow's database where there is none, whole or not at all.

    MLflow makes its tables in many steps. A database that a killed process left between two of them
    is whole for SQLite, and MLflow can never open it.
    """
    if database.exists():
        return
    from mlflow import MlflowClient

    with atomic_path(database) as temporary:
        MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)


def synchronise(experiment: Experiment) -> str:
    """Send MLflow what it does not have yet of a run; what was done, a sentence a line.

    Raises:
        InputError: where MLflow cannot be reached.
    """
    told: list[str] = []
    _mend(experiment, told.append)
    uri = tracking_uri(experiment)
    where = masked_address(uri)
    try:
        copy = _copy_of(experiment)
        count = copy.send_new()
        copy.send_summary()
    except Exception as error:
        raise InputError(
            f"MLflow at {where} could not be brought up to date ({_reason(error, uri)}); results "
            f"are on disk, and --sync may be run again"
        ) from error
    return "\n".join([*told, f"sent {count} records of {experiment.folder} to {where}"])


def _reason(error: BaseException, uri: str) -> str:
    while error.__cause__ is not None:  # of a database's error the first line only says where
        error = error.__cause__
    said = (without_secrets(str(error), uri).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}"


class MlflowCopy:
    """The records of one run folder in one MLflow experiment.

    Args:
        run_dir: the run folder.
        uri: tracking server or database.
        experiment: name of the MLflow experiment.
        own: the database at `uri` that nobody else uses, made where it is not there; None where
            it is another one, or a server.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str, own: Path | None = None) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # slow to import, and only this needs it

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # It logs with a traceback what it raises, which is told in a sentence.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if own is not None:
            _make(own)
        self._run_dir = run_dir
        self._store = RecordStore(run_dir)
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment_id = self._find_experiment(experiment, uri)
        self._at_once = _SENDERS if uri.startswith("http") else 1
        self._parent = self._find_parent()
        self._run_ids: dict[str, str] = {}
        self._sent: set[str] = set()
        for run in self._once(f"tags.`{_PARENT}` = '{self._parent}'"):
            self._run_ids[run.data.tags[_KEY]] = str(run.info.run_id)
            if run.info.status == "FINISHED":
                self._sent.add(run.data.tags[_KEY])

    def _find_experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        database = uri.removeprefix("sqlite:///")
        # Beside the database, which several runs may share; a server has a place of its own.
        folder = (Path(database).parent / "mlartifacts").resolve()
        artifacts = folder.as_uri() if database != uri else None
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def _find_parent(self) -> str:
        key = run_id(self._run_dir)
        found = [str(run.info.run_id) for run in self._once(f"tags.`{_KEY}` = '{key}'")]
        parent = found[0] if found else self._create(self._run_dir.resolve().name, {_KEY: key})
        self._client.set_tag(parent, _SETTLED, "yes")
        return parent

    def _once(self, condition: str) -> list[Any]:
        """The runs that were found; of those with the same key one is left."""
        found: dict[str, Any] = {}
        for run in sorted(self._search(condition), key=lambda run: not _is_settled(run)):
            if found.setdefault(run.data.tags[_KEY], run) is not run:
                self._client.delete_run(run.info.run_id)
        return list(found.values())

    def _search(self, condition: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                condition,
                max_results=1000,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def send_new(self) -> int:
        """Send the records that MLflow does not have yet; how many they were.

        Raises:
            Exception: where MLflow fails; what it got until then stays.
        """
        missing = deque(
            (kind, key) for kind in Kind for key in self._store.keys(kind) if key not in self._sent
        )
        sent: list[str] = []
        failed: list[Exception] = []

        def send() -> None:
            while missing and not failed:
                try:
                    kind, key = missing.popleft()
                except IndexError:  # somebody else took the last one
                    return
                try:
                    if self._send_one(kind, key):
                        sent.append(key)
                except Exception as error:
                    failed.append(error)

        # Daemons, because the process must be able to end while a server keeps one waiting.
        senders = [
            threading.Thread(target=send, name="mlflow", daemon=True) for _ in range(self._at_once)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        if failed:
            raise failed[0]
        return len(sent)

    def _send_one(self, kind: Kind, key: str) -> bool:
        """Send a record; whether there was one to send."""
        try:
            record = self._store.get(kind, key)
        except InputError:  # a damaged one is dealt with by whoever needs it
            return False
        if record is None:
            return False
        self._send(key, record)
        self._sent.add(key)
        return True

    def _send(self, key: str, record: Record) -> None:
        from mlflow.entities import Metric, Param

        if key not in self._run_ids:
            tags = {
                _KEY: key,
                _PARENT: self._parent,
                "apgd.kind": record.kind.value,
                "apgd.method": record.method,
                "apgd.variant": record.variant.value,
                "apgd.seed": str(record.seed),
            }
            name = f"{record.kind}-{record.method}-{record.variant}-seed{record.seed}"
            self._run_ids[key] = self._create(name, tags)
        run = self._run_ids[key]
        values = {**record.scores, **{f"seconds/{k}": v for k, v in record.seconds.items()}}
        params = {"method": record.method, "seed": record.seed, **record.params}
        # A fixed timestamp makes sending the same metric twice the same as once.
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, 0, 0) for name, value in values.items()],
            params=[Param(name, str(value)) for name, value in params.items()],
        )
        self._client.set_terminated(run)

    def mark(self, status: str) -> None:
        """Set the parent run's status: RUNNING, KILLED or FINISHED."""
        self._client.update_run(self._parent, status=status)

    def send_summary(self) -> None:
        """Send settings, stage times and the report's files, and end the parent run."""
        from mlflow.entities import Metric, Param

        # A server that was slow may have made runs twice since they were looked for.
        self._once(f"tags.`{_KEY}` = '{run_id(self._run_dir)}'")
        self._once(f"tags.`{_PARENT}` = '{self._parent}'")
        manifest_path = self._run_dir / "manifest.json"
        if manifest_path.exists():
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            settings = {**manifest["experiment"], "git_commit": manifest["git_commit"]}
            values = {f"seconds/{stage['name']}": stage["seconds"] for stage in manifest["stages"]}
            values |= {f"test_mean/{row}": mean for row, mean in manifest["results"].items()}
            # The time of the run that wrote them: of several, MLflow shows the newest.
            written = int(manifest_path.stat().st_mtime * 1000)
            self._client.log_batch(
                self._parent,
                metrics=[Metric(name, value, written, 0) for name, value in values.items()],
                # MLflow refuses to change a param: what may grow when a run is extended is a tag.
                params=[Param("suite", str(settings["suite"]))],
                tags=_tags(settings),
            )
        for name in _ARTIFACTS:
            if (self._run_dir / name).exists():
                self._client.log_artifact(self._parent, str(self._run_dir / name))
        for folder in ("figures", "ablations"):
            for file in sorted((self._run_dir / folder).glob("*")):
                self._client.log_artifact(self._parent, str(file), folder)
        self.mark("FINISHED" if manifest_path.exists() else "KILLED")


def _is_settled(run: Any) -> bool:
    """Whether a run is not one that a server made without our knowing."""
    return run.info.status == "FINISHED" or _SETTLED in run.data.tags


def _tags(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(f"apgd.setting.{name}", str(value)) for name, value in values.items()]


class Tracker:
    """Keeps an `MlflowCopy` up to date from a thread of its own.

    A server that is down, or does not answer, costs a warning; nothing is lost, because everything
    is on disk, and nothing waits for it but the end of the run, for some seconds.

    Args:
        experiment: says which run folder is sent where.
        say: called with one sentence where MLflow cannot be reached, or can again.
    """

    def __init__(self, experiment: Experiment, say: Callable[[str], None]) -> None:
        self.uri = tracking_uri(experiment)
        """Tracking server or database."""
        self._shown = masked_address(self.uri)
        self.how_to_look = (
            f"uv run mlflow ui --backend-store-uri {self._shown}"
            if self.uri.startswith("sqlite")
            else self._shown
        )
        """An address or a command for people."""
        self._mend: Callable[[], None] = lambda: _mend(experiment, say)
        self._make: Callable[[], MlflowCopy] = lambda: _copy_of(experiment)
        self._say = say
        self._closing = threading.Event()
        self._complete = False
        self._failures = 0  # in a row
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def __enter__(self) -> "Tracker":
        self._mend()  # before there is a connection
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self.finish(complete=kind is None)

    def finish(self, *, complete: bool) -> None:
        """Send what is left; where `complete`, the report's files too. Idempotent."""
        if self._closing.is_set():
            return
        self._complete = complete
        self._closing.set()
        patient = complete and not self._failures
        self._thread.join(_CLOSE_SECONDS if patient else _HURRIED_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(f"MLflow at {self._shown} is slow to answer; send the rest with --sync")

    def _loop(self) -> None:
        copy: MlflowCopy | None = None
        while True:
            longer = 2 ** min(self._failures, 3)
            closing = self._closing.wait(min(_INTERVAL_SECONDS * longer, _LONGEST_INTERVAL_SECONDS))
            try:
                if copy is None:
                    copy = self._make()
                    copy.mark("RUNNING")
                count = copy.send_new()
                if closing and self._complete:
                    copy.send_summary()
                elif closing:
                    copy.mark("KILLED")
                self._reached(count)
            except Exception as error:
                # A new one asks what MLflow has: an answer may have been lost.
                copy = None
                self._unreachable(error)
            if closing:
                return

    def _reached(self, count: int) -> None:
        if self._failures:
            self._failures = 0
            self._say(
                f"MLflow at {self._shown} answers again, and has what it missed: {count} records"
            )

    def _unreachable(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            self._say(
                f"MLflow at {self._shown} could not be brought up to date "
                f"({_reason(error, self.uri)}); results are on disk, send them later with --sync"
            )
