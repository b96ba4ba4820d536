"""MLflow: a copy of what is on disk, sent by a thread that never stops the run.

A run is found again by the tag that holds its record's key, so sending twice changes nothing: that
is how `--sync` completes what a server missed.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune.experiment import Experiment, run_id, without_credentials
from tune.records import Kind, Record, RecordStore

_KEY = "apgd.key"
_PARENT = "mlflow.parentRunId"
_INTERVAL_SECONDS = 3.0
_CLOSE_SECONDS = 60.0
_INTERRUPTED_SECONDS = 10.0
_ENVIRONMENT = {
    # A dead server must not stall the sender for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_ARTIFACTS = ("report.html", "report.md", "table.csv", "manifest.json")


def tracking_uri(experiment: Experiment) -> str:
    """The chosen tracking server, or else a database in the run folder."""
    return experiment.tracking_uri or f"sqlite:///{(experiment.folder / 'mlflow.db').resolve()}"


def _copy_of(experiment: Experiment) -> "MlflowCopy":
    return MlflowCopy(experiment.folder, tracking_uri(experiment), f"apgd/{experiment.suite}")


def synchronise(experiment: Experiment) -> str:
    """Send MLflow what it does not have yet of a run; a sentence that says what was sent."""
    copy = _copy_of(experiment)
    count = copy.send_new()
    copy.send_summary()
    where = without_credentials(tracking_uri(experiment))
    return f"sent {count} records of {experiment.folder} to {where}"


class MlflowCopy:
    """The records of one run folder in one MLflow experiment.

    Args:
        run_dir: the run folder.
        uri: tracking server or database.
        experiment: name of the MLflow experiment.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # slow to import, and only this needs it

        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._run_dir = run_dir
        self._store = RecordStore(run_dir)
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment_id = self._find_experiment(experiment, uri)
        self._parent = self._find_parent()
        children = list(self._search(f"tags.`{_PARENT}` = '{self._parent}'"))
        self._run_ids = {run.data.tags[_KEY]: str(run.info.run_id) for run in children}
        self._sent = {run.data.tags[_KEY] for run in children if run.info.status == "FINISHED"}

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
        for run in self._search(f"tags.`{_KEY}` = '{key}'"):
            return str(run.info.run_id)
        return self._create(self._run_dir.resolve().name, {_KEY: key})

    def _search(self, condition: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], condition, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def send_new(self) -> int:
        """Send the records that MLflow does not have yet; how many they were."""
        count = 0
        for kind in Kind:
            for key in self._store.keys(kind):
                record = None if key in self._sent else self._store.get(kind, key)
                if record is not None:
                    self._send(key, record)
                    self._sent.add(key)
                    count += 1
        return count

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

        manifest_path = self._run_dir / "manifest.json"
        if manifest_path.exists():
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            params = {**manifest["experiment"], "git_commit": manifest["git_commit"]}
            values = {f"seconds/{stage['name']}": stage["seconds"] for stage in manifest["stages"]}
            values |= {f"test_mean/{row}": mean for row, mean in manifest["results"].items()}
            # The time of the run that wrote them: of several, MLflow shows the newest.
            written = int(manifest_path.stat().st_mtime * 1000)
            self._client.log_batch(
                self._parent,
                metrics=[Metric(name, value, written, 0) for name, value in values.items()],
                # Settings may grow when a run is extended, so they are tags as well as params.
                params=[Param(k, str(v)) for k, v in params.items() if k in ("suite", "trials")],
                tags=_tags(params),
            )
        for name in _ARTIFACTS:
            if (self._run_dir / name).exists():
                self._client.log_artifact(self._parent, str(self._run_dir / name))
        for folder in ("figures", "ablations"):
            for file in sorted((self._run_dir / folder).glob("*")):
                self._client.log_artifact(self._parent, str(file), folder)
        self.mark("FINISHED" if manifest_path.exists() else "KILLED")


def _tags(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(f"apgd.setting.{name}", str(value)) for name, value in values.items()]


class Tracker:
    """Keeps an `MlflowCopy` up to date from a thread of its own.

    A server that is down costs one warning; nothing is lost, because everything is on disk.

    Args:
        experiment: says which run folder is sent where.
        warn: called with one sentence where MLflow cannot be reached.
    """

    def __init__(self, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self.uri = tracking_uri(experiment)
        """Tracking server or database."""
        self._shown = without_credentials(self.uri)
        self.how_to_look = (
            f"uv run mlflow ui --backend-store-uri {self._shown}"
            if self.uri.startswith("sqlite")
            else self._shown
        )
        """An address or a command for people."""
        self._make: Callable[[], MlflowCopy] = lambda: _copy_of(experiment)
        self._warn = warn
        self._closing = threading.Event()
        self._complete = False
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def __enter__(self) -> "Tracker":
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
        self._thread.join(_CLOSE_SECONDS if complete else _INTERRUPTED_SECONDS)
        if self._thread.is_alive():
            self._warn(f"MLflow at {self._shown} is slow to answer; send the rest with --sync")

    def _loop(self) -> None:
        copy: MlflowCopy | None = None
        while True:
            closing = self._closing.wait(_INTERVAL_SECONDS)
            try:
                if copy is None:
                    copy = self._make()
                    copy.mark("RUNNING")
                copy.send_new()
                if closing and self._complete:
                    copy.send_summary()
                elif closing:
                    copy.mark("KILLED")
            except Exception as error:
                self._unreachable(error)
            if closing:
                return

    def _unreachable(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = (str(error).splitlines() or [""])[0][:200]
            self._warn(
                f"MLflow at {self._shown} could not be brought up to date "
                f"({type(error).__name__}: {reason}); results are on disk, send them later with "
                f"--sync"
            )
