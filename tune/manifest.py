"""What a run was made of: enough to run it again and get the same numbers."""

import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apgd
from apgd.data import Task
from apgd.files import sha256_file, write_json
from apgd.finetune import Expert
from apgd.machine import processor
from apgd.masking import masked_address, without_secrets
from apgd.suites import Suite
from tune.begin import Begun, Made
from tune.cluster import Cluster, plural
from tune.evaluators import mean_score
from tune.records import Kind, Record
from tune.references import MULTI_TASK
from tune.workers.introductions import Introduction

_PACKAGES = (
    "apgd",
    "torch",
    "numpy",
    "open_clip_torch",
    "ray",
    "optuna",
    "mlflow",
    "scikit-learn",
    "scipy",
    "pillow",
    "matplotlib",
)


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest:
    """The manifest of a run, started when this object is made."""

    def __init__(self) -> None:
        self._started = now()
        self._git = git_state()

    def write(
        self, run: Begun, made: Made, records: Sequence[Record], results: Mapping[str, float]
    ) -> dict[str, Any]:
        """Write `manifest.json` into the run folder.

        Args:
            run: where and how the work was done.
            made: what was merged.
            records: the trials and evaluations that the report is made of.
            results: mean test score by row, at most 1.

        Returns:
            What was written.
        """
        suite, experiment = run.suite, run.experiment
        experts = made.experts
        value = {
            "experiment": {
                "name": experiment.name,
                **experiment.as_dict(),
                "trials": experiment.effective_trials,
            },
            "suite": describe_suite(suite, corrupted=experiment.corruptions),
            "versions": versions(),
            **self._git,
            "machine": describe_machine(run.cluster, run.placement.met),
            "hashes": {
                "base": sha256_file(suite.base_path()),
                "experts": {
                    f"{task}-seed{seed}": expert.sha256
                    for (seed, task), expert in sorted(experts.items())
                },
                "data": {f"{t}/{split}": h for (t, split), h in sorted(made.hashes.items())},
            },
            "experts_family": _family(
                suite, [expert for (_, task), expert in experts.items() if task != MULTI_TASK]
            ),
            "command": command_line(),
            "started": self._started,
            "finished": now(),
            "stages": [stage.as_dict() for stage in run.display.stages],
            "split_reads": _reads(records),
            # The records that this run is made of; its folder may hold more.
            "records": {
                Kind.EXPERT: made.expert_keys,
                **{
                    kind: [record.key for record in records if record.kind is kind]
                    for kind in (Kind.TRIAL, Kind.EVALUATION)
                },
            },
            "results": dict(results),
        }
        write_json(experiment.folder / "manifest.json", value)
        return value


def row_means(rows: Iterable[Record], tasks: Sequence[str]) -> dict[str, float]:
    """Mean test score of every row of a table over tasks and seeds, at most 1."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(f"{row.method}-{row.variant}", []).append(mean_score(row, tasks))
    return {name: sum(values) / len(values) for name, values in found.items()}


def describe_suite(suite: Suite, *, corrupted: bool = True) -> dict[str, Any]:
    """What a report needs to know of a suite, as JSON values.

    Args:
        suite: what was merged and tested.
        corrupted: whether there were corrupted test images.
    """
    return {
        "name": suite.name,
        "title": suite.title,
        "tasks": _describe_tasks(suite.tasks),
        "unseen": _describe_tasks(suite.unseen),
        "published_suite": suite.published_suite,
        "shortened": {name: dict(values) for name, values in suite.shortened.items()},
        "corrupted": list(suite.corrupted) if corrupted else [],
        "corruptions": list(suite.corruptions) if corrupted else [],
    }


def _family(suite: Suite, experts: Iterable[Expert]) -> str | None:
    """The published family that all experts belong to, if there is one."""
    families = {expert.manifest.get("family", suite.family) for expert in experts}
    return families.pop() if len(families) == 1 else None


def _describe_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    return [
        {
            "name": task.name,
            "title": task.title,
            "stands_for": task.stands_for,
            "classes": len(task.class_names),
            "metric": task.metric,
        }
        for task in tasks
    ]


def _reads(records: Iterable[Record]) -> dict[str, int]:
    """How many trials and rows were scored on each split."""
    counts = Counter(split for record in records for split in record.details["reads"])
    return {str(split): count for split, count in sorted(counts.items())}


def describe_machine(cluster: Cluster, workers: Sequence[Introduction]) -> dict[str, Any]:
    """Processor and operating system of the driver, and how the work was cut."""
    return {
        "description": (
            f"{processor()}, {platform.system()} {platform.machine()}, "
            f"{plural(cluster.workers, 'worker')} with "
            f"{plural(cluster.threads_per_worker, 'CPU thread')} each"
        ),
        "nodes": cluster.nodes,
        "cpus": cluster.cpus,
        "gpus": cluster.gpus,
        "workers": cluster.workers,
        "threads_per_worker": cluster.threads_per_worker,
        "devices": sorted(worker.device for worker in workers),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found}


def git_state() -> dict[str, Any]:
    """Commit of the source and whether it was changed since; None outside a checkout."""
    folder = Path(apgd.__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return {
        "git_commit": commit,
        "git_dirty": None if commit is None or status is None else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line() -> str:
    """The command that started this process, as one would type it."""
    script = Path(sys.argv[0]).name
    arguments = map(masked_address, sys.argv[1:])
    return without_secrets(shlex.join(["uv", "run", f"experiments/{script}", *arguments]))
