"""The main job of a suite in this process: prepare, fine-tune, merge, evaluate, report; no Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from apgd.suites import Suite, suites
from tune import experts as expert_stages
from tune import stages
from tune.begin import Begun, Made
from tune.cluster import Cluster
from tune.experiment import Experiment, check, merged_rank
from tune.manifest import Manifest, row_means
from tune.progress import Display
from tune.records import Record, RecordStore
from tune.report import Report
from tune.search.sampling import Outcome
from tune.search.stage import Searched, trial_record
from tune.search.studies import Study
from tune.search.trials import Trial
from tune.workers import process as worker_process
from tune.workers.introductions import Introduction
from tune.workers.pool import Job
from tune.workers.process import Shared, Worker

CLUSTER = Cluster(nodes=1, cpus=1, gpus=0, joined=False, workers=1, threads_per_worker=1)


class OneWorker:
    """Stands in for the pool of workers: jobs run here, one after another."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(worker_process, "assigned_device", lambda: "cpu")
        self.worker = Worker(threads=1)

    def start(self) -> list[Introduction]:
        return []

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_done: Callable[[int, Any], None] | None = None,
        on_progress: object = None,
    ) -> list[Any]:
        results = []
        for index, job in enumerate(jobs):
            results.append(getattr(self.worker, job.method)(*job.arguments))
            if on_done is not None:
                on_done(index, results[-1])
        return results


def run_whole_path(
    suite: Suite, folder: Path, patch: pytest.MonkeyPatch, *, method: str = "ties", **fields: Any
) -> tuple[Report, list[Record]]:
    """A smoke run of a suite with averaging and a searched method; its report and its rows."""
    patch.setitem(suites._found(), suite.name, suite)
    experiment = Experiment(
        suite=suite.name,
        methods=("weight_averaging", method),
        smoke=True,
        run_dir=folder / "run",
        experts_dir=folder / "experts",
        **fields,
    )
    check(experiment)
    store = RecordStore(experiment.folder)
    manifest = Manifest()
    pool: Any = OneWorker(patch)
    with Display(Console(quiet=True)) as display:
        hashes = expert_stages.prepare_data(suite, pool, display)
        experts = expert_stages.train_experts(experiment, suite, hashes, pool, display)
        keys = expert_stages.record_experts(experts, store)
        workload = stages.make_workload(experiment, suite, hashes, experts)
        rank, params = merged_rank(suite), tuple(suite.published.get(method, {}).items())
        study = Study(method, 0, 1, rank, len(suite.tasks), params)
        shared = Shared((study,), ("key",), workload, bases={})
        rungs = [pool.worker.score_trial(shared, 0, 0, {}, i) for i in range(len(study.rungs))]
        outcome = Outcome(rungs=tuple(rungs), complete=True)
        trial = trial_record(Trial(study, "key", 0, ()), outcome, workload)
        store.add(trial)
        searches = [Searched(study, (trial,), trial)]
        jobs = stages.evaluation_jobs(experiment, searches)
        rows = stages.evaluate(jobs, workload, pool, store, display)
        placement: Any = SimpleNamespace(met=[])
        tracker: Any = None
        run = Begun(experiment, suite, store, display, CLUSTER, placement, tracker)
        made = Made(hashes, experts, keys, workload)
        means = row_means(rows, [task.name for task in suite.tasks])
        manifest.write(run, made, [trial, *rows], means)
        report = stages.report(experiment, suite, display)
    return report, rows
