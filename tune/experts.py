"""The stages that make what is merged: data, experts, statistics of training data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apgd.budget import Budget, finetune_budget
from apgd.data import Split
from apgd.errors import InputError
from apgd.external import OWN, ForeignExperts
from apgd.finetune import Expert, ExpertSpec, expert_spec, find_expert, joint_spec
from apgd.methods import methods
from apgd.suites import FinetuneSettings, Suite
from apgd.training_statistics import statistic_spec, statistics_file
from tune.evaluators import Statistic
from tune.experiment import Experiment
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.references import MULTI_TASK
from tune.workers import Introduction, Job, WorkerPool

DataHashes = Mapping[tuple[str, str], str]
"""SHA-256 of the examples by task and split, or task and corruption."""
Experts = Mapping[tuple[int, str], Expert]
"""Finished experts by seed and task; the multi-task model of a seed as that of `multi_task`."""


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
    wanted: list[tuple[str, str]] = [(t.name, split) for t in suite.tasks for split in Split]
    wanted += [(task.name, Split.TEST) for task in suite.unseen]
    if unseen_validation:
        wanted += [(task.name, Split.VALIDATION) for task in suite.unseen]
    jobs = [
        Job("prepare", (suite.name, task, split), f"preparing the {split} split of {task}")
        for task, split in wanted
    ]
    # Those that are computed follow from the test split.
    download = corrupted and suite.datasets()
    fetched = [(t, c) for t in suite.corrupted for c in suite.corruptions if download]
    jobs += [
        Job("prepare_corrupted", (suite.name, t, c), f"preparing {t} with {c}") for t, c in fetched
    ]
    ready = sum(suite.has_examples(task, Split(split)) for task, split in wanted)
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
    data = {task.name: hashes[task.name, Split.TRAIN] for task in suite.tasks}
    seeds = range(experiment.seeds)
    specs: dict[tuple[int, str], ExpertSpec] = {}
    found: dict[tuple[int, str], Expert] = {}
    if MULTI_TASK in experiment.references:
        # First, because the longest job should not be the last to start.
        specs |= {(seed, MULTI_TASK): joint_spec(suite, seed, settings, data) for seed in seeds}
    if experiment.experts == OWN:
        specs |= {
            (seed, task): expert_spec(suite, task, seed, settings, data[task])
            for seed in seeds
            for task in data
        }
    else:
        found = _foreign_experts(ForeignExperts(suite, experiment.experts), root, display)
        if not specs:
            return found
    missing = {spec.key: spec for spec in specs.values() if find_expert(spec, root) is None}
    budget = training_budget(suite, settings, pool.start()) if missing else None
    if budget is not None:
        display.say(budget.sentence)
    total = sum(spec.settings.steps for spec in specs.values())
    done = total - sum(spec.settings.steps for spec in missing.values())
    name = "experts" if experiment.experts == OWN else MULTI_TASK
    with display.stage(name, total, done) as stage:

        def finished(index: int, _manifest: Any) -> None:
            nonlocal done
            done += todo[index].settings.steps

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
    expert = find_expert(spec, root)
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


def collect_statistics(
    experiment: Experiment,
    suite: Suite,
    hashes: DataHashes,
    experts: Experts,
    pool: WorkerPool,
    display: Display,
) -> tuple[Statistic, ...]:
    """Compute the training statistics that the run's methods need and that do not exist yet."""
    needs = sorted({methods[n].needs for n in experiment.methods if methods[n].needs.is_statistic})
    if not needs:
        return ()
    root = experiment.experts_dir.resolve() / "statistics"
    settings = experiment.statistic_settings
    specs = {
        (seed, need, task): statistic_spec(
            need, suite, task, expert.sha256, hashes[task, Split.TRAIN], settings
        )
        for (seed, task), expert in experts.items()
        if task != MULTI_TASK
        for need in needs
    }
    missing = [key for key, spec in specs.items() if statistics_file(spec, root) is None]
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
