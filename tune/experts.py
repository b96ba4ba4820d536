"""The stages that make what is merged: data, experts, statistics of training data."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apgd.budget import Budget, finetune_budget
from apgd.data import Split
from apgd.errors import InputError
from apgd.evidence import Need
from apgd.external import OWN, ForeignExperts
from apgd.finetune import (
    Expert,
    ExpertSpec,
    expert_spec,
    find_expert,
    find_whole_expert,
    joint_spec,
)
from apgd.methods import methods
from apgd.mixture import joint_settings
from apgd.suites import FinetuneSettings, Suite
from apgd.training_statistics import statistic_spec, statistics_file
from tune.evaluators import Statistic
from tune.experiment import Experiment
from tune.progress import Display
from tune.records import SHARED_SECONDS, Kind, Record, RecordStore, Variant
from tune.references import MULTI_TASK
from tune.workers.introductions import Introduction
from tune.workers.pool import Job, WorkerPool

DataHashes = Mapping[tuple[str, str], str]
"""SHA-256 of the examples by task and split, or task and corruption."""
Experts = Mapping[tuple[int, str], Expert]
"""Finished experts by seed and task; the multi-task model of a seed as that of `multi_task`."""


def data_cells(
    suite: Suite, *, corrupted: bool, unseen_validation: bool
) -> tuple[list[tuple[str, Split]], list[tuple[str, str]]]:
    """Tasks and splits that a run needs, and tasks and corruptions that are downloaded for it.

    Args:
        suite: whose.
        corrupted: as `prepare_data`.
        unseen_validation: as `prepare_data`.
    """
    wanted = [(task.name, split) for task in suite.tasks for split in Split]
    wanted += [(task.name, Split.TEST) for task in suite.unseen]
    if unseen_validation:
        wanted += [(task.name, Split.VALIDATION) for task in suite.unseen]
    # Those that are computed follow from the test split.
    download = corrupted and suite.datasets()
    return wanted, [(t, c) for t in suite.corrupted for c in suite.corruptions if download]


def prepare_data(
    suite: Suite,
    pool: WorkerPool,
    display: Display,
    *,
    corrupted: bool = True,
    unseen_validation: bool = False,
) -> dict[tuple[str, str], str]:
    """Make every split's examples ready; their hashes.

    Args:
        suite: whose examples.
        pool: the workers.
        display: where progress is shown.
        corrupted: whether downloaded corruptions are wanted too.
        unseen_validation: whether validation examples of the unseen tasks are wanted too.
    """
    wanted, fetched = data_cells(suite, corrupted=corrupted, unseen_validation=unseen_validation)
    jobs = [
        Job("prepare", (suite.name, task, split), f"preparing the {split} split of {task}")
        for task, split in wanted
    ]
    jobs += [
        Job("prepare_corrupted", (suite.name, t, c), f"preparing {t} with {c}") for t, c in fetched
    ]
    ready = sum(suite.has_examples(task, split) for task, split in wanted)
    with display.stage("data", len(jobs)) as stage:
        # What is ready is read and checked all the same.
        hashes = pool.run(jobs, on_done=lambda _index, _hash: stage.advance())
        stage.count(done=len(jobs) - ready, reused=ready)
        stage.note(f"{len(suite.tasks)} tasks, {len(suite.unseen)} unseen")
    cells = (*wanted, *fetched)
    return {(task, str(condition)): h for (task, condition), h in zip(cells, hashes, strict=True)}


def train_experts(
    experiment: Experiment,
    suite: Suite,
    hashes: DataHashes,
    pool: WorkerPool,
    display: Display,
) -> dict[tuple[int, str], Expert]:
    """Fine-tune the models that do not exist yet: experts, and the multi-task model if asked for.

    Experts from elsewhere are brought in; the multi-task model is always fine-tuned here, by the
    suite's settings.

    Raises:
        InputError: where a GPU has too little memory for it.
    """
    root = experiment.experts_dir.resolve()
    settings = experiment.finetune_settings(suite)
    specs = model_specs(
        experiment, suite, {task.name: hashes[task.name, Split.TRAIN] for task in suite.tasks}
    )
    found: dict[tuple[int, str], Expert] = {}
    if experiment.experts != OWN:
        found = _foreign_experts(ForeignExperts(suite, experiment.experts), root, display)
        if not specs:
            return found
    missing = {
        spec.key: spec
        for spec in specs.values()
        if find_whole_expert(spec, root, display.say) is None
    }
    budget = training_budget(suite, settings, pool.start()) if missing else None
    if budget is not None:
        display.say(budget.sentence)
    total = sum(spec.settings.steps for spec in specs.values())
    done = total - sum(spec.settings.steps for spec in missing.values())
    name = "experts" if experiment.experts == OWN else MULTI_TASK
    with display.stage(name, total, done) as stage:

        def finished(index: int, manifest: Mapping[str, Any]) -> None:
            nonlocal done
            done += todo[index].settings.steps
            for event in manifest["events"]:
                display.say(f"expert {todo[index].task} (seed {todo[index].seed}): {event}")

        def progressed(running: Mapping[int, tuple[int, int]]) -> None:
            stage.at(done + sum(at for at, _total in running.values()))

        todo = list(missing.values())
        jobs = [
            Job(
                "train",
                (suite.name, spec, root),
                f"training {spec.task} (seed {spec.seed})",
                trains=True,
            )
            for spec in todo
        ]
        pool.run(jobs, on_done=finished, on_progress=progressed)
        stage.count(done=len(missing), reused=len(specs) - len(missing))
        stage.note(f"in {experiment.experts_dir}")
    return found | {key: _existing(spec, root) for key, spec in specs.items()}


def wanted_models(experiment: Experiment, suite: Suite) -> dict[tuple[int, str], int]:
    """Steps of every model that a run fine-tunes itself, by seed and task, the longest first."""
    steps = experiment.finetune_settings(suite).steps
    tasks = [task.name for task in suite.tasks]
    wanted: dict[tuple[int, str], int] = {}
    if MULTI_TASK in experiment.references:
        joint = joint_settings(experiment.finetune_settings(suite), len(tasks)).steps
        wanted |= {(seed, MULTI_TASK): joint for seed in range(experiment.seeds)}
    if experiment.experts == OWN:
        wanted |= {(seed, task): steps for seed in range(experiment.seeds) for task in tasks}
    return wanted


def model_specs(
    experiment: Experiment, suite: Suite, data: Mapping[str, str]
) -> dict[tuple[int, str], ExpertSpec]:
    """Specifications of `wanted_models`, in the same order.

    Args:
        experiment: the run.
        suite: its suite.
        data: hashes of the training splits by task.
    """
    settings = experiment.finetune_settings(suite)
    return {
        (seed, task): joint_spec(suite, seed, settings, data)
        if task == MULTI_TASK
        else expert_spec(suite, task, seed, settings, data[task])
        for seed, task in wanted_models(experiment, suite)
    }


def _foreign_experts(
    foreign: ForeignExperts, root: Path, display: Display
) -> dict[tuple[int, str], Expert]:
    """Experts from elsewhere, in the suite's own format."""
    tasks = [task.name for task in foreign.suite.tasks]
    found = {}
    with display.stage("experts", len(tasks)) as stage:
        for task in tasks:
            found[0, task] = foreign.fetch(task, root)
            stage.advance()
        stage.note(f"{foreign.source}, in {root}")
    return found


def training_budget(
    suite: Suite, settings: FinetuneSettings, workers: Sequence[Introduction]
) -> Budget | None:
    """What fine-tuning will take of the smallest GPU; None where there is none.

    Raises:
        InputError: where it does not fit.
    """
    free = [worker.free_bytes for worker in workers if worker.free_bytes is not None]
    budget = finetune_budget(suite, settings, min(free)) if free else None
    if budget is not None and not budget.fits:
        raise InputError(budget.sentence)
    return budget


def record_experts(experts: Experts, store: RecordStore) -> list[str]:
    """Put a record of every expert into the run folder; their keys."""
    records = [_expert_record(task, seed, expert) for (seed, task), expert in experts.items()]
    for record in records:
        store.add(record)
    return [record.key for record in records]


def _existing(spec: ExpertSpec, root: Path) -> Expert:
    until = time.monotonic() + SHARED_SECONDS
    while (expert := find_expert(spec, root)) is None and time.monotonic() < until:
        time.sleep(SHARED_SECONDS / 100)
    if expert is None:
        raise FileNotFoundError(
            f"expert {spec.task} was trained, but {spec.folder(root)} is not visible here; "
            f"experts must lie on storage that all machines share"
        )
    return expert


def _expert_record(task: str, seed: int, expert: Expert) -> Record:
    manifest = expert.manifest
    spec = manifest.get("spec", {})
    settings = spec.get("settings", {})
    chosen = ("steps", "batch_size", "learning_rate", "weight_decay")
    told = ("tau_norm_ratio", "last_loss", "device", "threads", "origin", "family")
    hashes = {"data": spec.get("data_sha256"), "base": spec.get("base_sha256")}
    return Record(
        kind=Kind.EXPERT,
        method=task,
        variant=Variant.REFERENCE,
        seed=seed,
        params={name: settings[name] for name in chosen if name in settings},
        inputs={"weights": expert.sha256} | {name: h for name, h in hashes.items() if h},
        scores={},
        seconds={"train": manifest["seconds"]} if "seconds" in manifest else {},
        details={name: manifest[name] for name in told if name in manifest}
        | ({"steps": settings["steps"]} if settings else {}),
    )


def wanted_statistics(experiment: Experiment, suite: Suite) -> list[tuple[int, Need, str]]:
    """Seed, kind and task of the training statistics that a run's methods need."""
    needs = sorted({methods[n].needs for n in experiment.methods if methods[n].needs.is_statistic})
    return [
        (seed, need, task.name)
        for seed in range(experiment.seeds)
        for task in suite.tasks
        for need in needs
    ]


def collect_statistics(
    experiment: Experiment,
    suite: Suite,
    hashes: DataHashes,
    experts: Experts,
    pool: WorkerPool,
    display: Display,
) -> tuple[Statistic, ...]:
    """Compute the training statistics that the run's methods need and that do not exist yet."""
    wanted = wanted_statistics(experiment, suite)
    if not wanted:
        return ()
    root = experiment.experts_dir.resolve() / "statistics"
    settings = experiment.statistic_settings
    specs = {
        (seed, need, task): statistic_spec(
            need, suite, task, experts[seed, task].sha256, hashes[task, Split.TRAIN], settings
        )
        for seed, need, task in wanted
    }
    missing = [
        key for key, spec in specs.items() if statistics_file(spec, root, display.say) is None
    ]
    with display.stage("statistics", len(specs), len(specs) - len(missing)) as stage:
        jobs = [
            Job(
                "collect",
                (suite.name, specs[seed, need, task], experts[seed, task].weights, root),
                f"collecting {need} statistics of {task} (seed {seed})",
            )
            for seed, need, task in missing
        ]
        pool.run(jobs, on_done=lambda _index, _path: stage.advance())
        stage.count(done=len(missing), reused=len(specs) - len(missing))
        stage.note(f"of {settings.examples} training examples each, in {root}")
    return tuple((*key, str(spec.path(root))) for key, spec in specs.items())
