"""MLflow: a copy of what is on disk, sent by a thread that never stops the run.

A run is found again by the tag that holds its record's key, so sending twice changes nothing: that
is how `--sync` completes what a server missed.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune.experiment import Experiment
from tune.records import Kind, Record, RecordStore

_KEY = "apgd.key"
_PARENT = "mlflow.parentRunId"
_INTERVAL_SECONDS = 3.0
_CLOSE_SECONDS = 120.0
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
    return f"sent {count} records of {experiment.folder} to {tracking_uri(experiment)}"


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
        self._parent: str = self._find_run(str(run_dir.name)) or self._create(
            run_dir.name, {_KEY: run_dir.name}
        )
        self._sent = self._finished_children()

    def _find_experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = uri.startswith("sqlite")
        artifacts = (self._run_dir / "mlartifacts").resolve().as_uri() if local else None
        return str(self._client.create_experiment(name, artifact_location=artifacts))

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

    def _find_run(self, key: str) -> str | None:
        for run in self._search(f"tags.`{_KEY}` = '{key}'"):
            return str(run.info.run_id)
        return None

    def _finished_children(self) -> set[str]:
        children = self._search(f"tags.`{_PARENT}` = '{self._parent}'")
        return {run.data.tags[_KEY] for run in children if run.info.status == "FINISHED"}

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def send_new(self) -> int:
        """Send the records that MLflow does not have yet; how many they were."""
        count = 0
        for kind in Kind:
            for record in self._store.all(kind):
                if record.key not in self._sent:
                    self._send(record)
                    self._sent.add(record.key)
                    count += 1
        return count

    def _send(self, record: Record) -> None:
        from mlflow.entities import Metric, Param

        key = record.key
        tags = {
            _KEY: key,
            _PARENT: self._parent,
            "apgd.kind": record.kind.value,
            "apgd.method": record.method,
            "apgd.variant": record.variant.value,
            "apgd.seed": str(record.seed),
        }
        run_id = self._find_run(key) or self._create(
            f"{record.kind}-{record.method}-{record.variant}-seed{record.seed}", tags
        )
        values = {**record.scores, **{f"seconds/{k}": v for k, v in record.seconds.items()}}
        params = {"method": record.method, "seed": record.seed, **record.params}
        # A fixed timestamp makes sending the same metric twice the same as once.
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, 0, 0) for name, value in values.items()],
            params=[Param(name, str(value)) for name, value in params.items()],
        )
        self._client.set_terminated(run_id)

    def send_summary(self) -> None:
        """Send settings, the headline metrics and the report's files, and end the parent run."""
        from mlflow.entities import Metric, Param

        manifest_path = self._run_dir / "manifest.json"
        if manifest_path.exists():
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            params = {**manifest["experiment"], "git_commit": manifest["git_commit"]}
            self._client.log_batch(
                self._parent,
                metrics=[
                    Metric(f"seconds/{stage['name']}", stage["seconds"], 0, 0)
                    for stage in manifest["stages"]
                ],
                # Settings may grow when a run is extended, so they are tags as well as params.
                params=[Param(k, str(v)) for k, v in params.items() if k in ("suite", "trials")],
                tags=_tags(params),
            )
        for name in _ARTIFACTS:
            if (self._run_dir / name).exists():
                self._client.log_artifact(self._parent, str(self._run_dir / name))
        for figure in sorted((self._run_dir / "figures").glob("*")):
            self._client.log_artifact(self._parent, str(figure), "figures")
        self._client.set_terminated(self._parent)


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
        self._make: Callable[[], MlflowCopy] = lambda: _copy_of(experiment)
        self._warn = warn
        self._closing = threading.Event()
        self._finished = False
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
        self._finished = complete
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS if complete else _INTERVAL_SECONDS)
        if self._thread.is_alive() and complete:
            self._warn(f"MLflow at {self.uri} is slow to answer; send the rest with --sync")

    def _loop(self) -> None:
        copy: MlflowCopy | None = None
        while True:
            closing = self._closing.wait(_INTERVAL_SECONDS)
            try:
                copy = copy or self._make()
                copy.send_new()
                if closing and self._finished:
                    copy.send_summary()
            except Exception as error:
                self._unreachable(error)
            if closing:
                return

    def _unreachable(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            with contextlib.suppress(ValueError):
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                self._warn(
                    f"MLflow at {self.uri} is not reachable ({type(error).__name__}: {reason}); "
                    f"results are on disk, send them later with --sync"
                )
