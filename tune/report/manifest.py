"""What a run says about itself: its `manifest.json`."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apgd.data import Metric
from apgd.errors import InputError
from apgd.published import Family
from tune.references import EXPERTS, PRETRAINED
from tune.report.formatting import listed
from tune.report.trials import ACCURACY, OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task, as the report names it."""

    name: str
    """Identifier in the records."""
    title: str
    """Name for people."""
    stands_for: str | None
    """The benchmark of the paper whose place it takes, if any."""
    classes: int | None
    """Number of classes."""
    metric: str = Metric.ACCURACY
    """How its answers are judged, one of apgd.data.Metric."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the run."""

    name: str
    """What it did."""
    seconds: float | None
    """Wall-clock time."""
    done: int | None
    """Results that it computed."""
    reused: int | None
    """Results that it found on disk."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A run's own account; a part that is absent from the file is empty or None here."""

    name: str
    suite_name: str
    """Identifier of the suite."""
    published_suite: str | None
    """The suite whose published results are shown beside the run's, if any."""
    shortened: Mapping[str, Mapping[str, Any]]
    """By method, settings that the suite has in place of the published ones, to be quick."""
    experts_family: Family | None
    """Whose experts were merged, as published tables tell them apart; None for others."""
    suite: str
    """Title of the suite."""
    seeds: int
    trials: int | None
    """Trials of the search, per method and seed."""
    methods: tuple[str, ...]
    references: tuple[str, ...]
    """Rows that the merges are compared with, by their names in tune.references."""
    smoke: bool
    """Whether the run only proves that everything works, with sizes cut down."""
    settings: Mapping[str, Any]
    """Every field of the experiment."""
    tasks: tuple[TaskInfo, ...]
    unseen: tuple[TaskInfo, ...]
    corrupted: tuple[str, ...]
    corruptions: tuple[str, ...]
    versions: Mapping[str, str]
    git_commit: str | None
    git_dirty: bool | None
    machine: Mapping[str, Any]
    hashes: Mapping[str, Any]
    command: str | None
    started: str | None
    finished: str | None
    stages: tuple[Stage, ...]
    split_reads: Mapping[str, int]
    records: Mapping[str, Collection[str]] | None
    """Keys of the records that the run is made of, by kind; None where it does not say."""

    @property
    def measure(self) -> str:
        """What the tables show: accuracy, or a score where some task has another metric."""
        plain = all(task.metric == Metric.ACCURACY for task in (*self.tasks, *self.unseen))
        return "accuracy" if plain else "score"

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the search maximised, the one first that winners are chosen by."""
        return tuple(self.settings.get("objectives") or (ACCURACY,))

    @property
    def chosen_by(self) -> str:
        """What a trial is chosen by, for people."""
        first = self.objectives[0]
        return f"mean {self.measure}" if first == ACCURACY else OBJECTIVES.get(first, first)

    @property
    def measure_note(self) -> str | None:
        """What a score is, in a sentence; None where all are accuracies."""
        others = [
            task.title for task in (*self.tasks, *self.unseen) if task.metric == Metric.SPEARMAN
        ]
        if not others:
            return None
        return (
            f"Score: accuracy in percent, and 100 times Spearman's rank correlation for "
            f"{listed(others)}."
        )

    def task(self, name: str) -> TaskInfo:
        """The task of that name; one that the manifest does not list is known by its name alone."""
        for task in (*self.tasks, *self.unseen):
            if task.name == name:
                return task
        return TaskInfo(name=name, title=name, stands_for=None, classes=None)


def read_manifest(run_dir: Path) -> Manifest:
    """Read `manifest.json` of a run folder.

    Raises:
        InputError: when the file is absent, is not JSON, or names no suite, tasks or seeds.
    """
    path = run_dir / "manifest.json"
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{run_dir} is not a run folder: it has no manifest.json") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a manifest of this version: {error!r}") from error


def _parsed(raw: Mapping[str, Any]) -> Manifest:
    experiment, suite = raw["experiment"], raw["suite"]
    return Manifest(
        name=str(experiment.get("name") or ""),
        suite=str(suite.get("title") or suite["name"]),
        suite_name=str(suite["name"]),
        published_suite=suite.get("published_suite"),
        shortened=suite.get("shortened") or {},
        experts_family=Family(raw["experts_family"]) if raw.get("experts_family") else None,
        seeds=int(experiment["seeds"]),
        trials=experiment.get("trials"),
        methods=tuple(experiment.get("methods") or ()),
        references=tuple(experiment.get("references", (PRETRAINED, EXPERTS))),
        smoke=bool(experiment.get("smoke")),
        settings=experiment,
        tasks=tuple(_task(task) for task in suite["tasks"]),
        unseen=tuple(_task(task) for task in suite.get("unseen") or ()),
        corrupted=tuple(suite.get("corrupted") or ()),
        corruptions=tuple(suite.get("corruptions") or ()),
        versions=raw.get("versions") or {},
        git_commit=raw.get("git_commit"),
        git_dirty=raw.get("git_dirty"),
        machine=raw.get("machine") or {},
        hashes=raw.get("hashes") or {},
        command=raw.get("command"),
        started=raw.get("started"),
        finished=raw.get("finished"),
        stages=tuple(
            Stage(
                name=str(stage["name"]),
                seconds=stage.get("seconds"),
                done=stage.get("done"),
                reused=stage.get("reused"),
            )
            for stage in raw.get("stages") or ()
        ),
        split_reads=raw.get("split_reads") or {},
        records={kind: set(keys) for kind, keys in raw["records"].items()}
        if "records" in raw
        else None,
    )


def _task(raw: Mapping[str, Any]) -> TaskInfo:
    return TaskInfo(
        name=raw["name"],
        title=str(raw.get("title") or raw["name"]),
        stands_for=raw.get("stands_for"),
        classes=raw.get("classes"),
        metric=str(raw.get("metric") or Metric.ACCURACY),
    )
