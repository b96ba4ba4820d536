"""The stages of the main job, one function each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apgd.budget import Budget, finetune_budget
from apgd.data import Split
from apgd.errors import InputError
from apgd.external import OWN, ForeignExperts
from apgd.files import content_key, sha256_file, write_json
from apgd.finetune import Expert, ExpertSpec, expert_spec, find_expert, joint_spec
from apgd.methods import methods
from apgd.source import library_versions, source_hash
from apgd.suites import FinetuneSettings, Suite
from apgd.training_statistics import statistic_spec, statistics_file
from tune.evaluators import Purpose, ScoreJob, Statistic, Workload
from tune.experiment import Experiment, merged_rank
from tune.geometry import is_measured
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.references import EXPERTS, MULTI_TASK, PRETRAINED
from tune.report import Axis, Report, build_report, write_report
from tune.search import run_searches
from tune.studies import Study, best_trial, searched, trial_job
from tune.workers import Introduction, Job, WorkerPool

_SAMPLES = 16
# What a score depends on besides weights and data.
_SCORING_CODE = (
    "apgd.adaptation",
    "apgd.batches",
    "apgd.checkpoints",
    "apgd.data",
    "apgd.eigenvectors",
    "apgd.evidence",
    "apgd.execution",
    "apgd.fused",
    "apgd.heads",
    "apgd.lanes",
    "apgd.layer_inputs",
    "apgd.lora",
    "apgd.methods",
    "apgd.metrics",
    "apgd.models",
    "apgd.numerics",
    "apgd.order_statistics",
    "apgd.projective",
    "apgd.strips",
    "apgd.subspaces",
    "apgd.suites",
    "apgd.task_vectors",
    "apgd.training_statistics",
    "apgd.transformed",
    "apgd.unlabelled",
    "tune.evaluators",
)
_SCORING_LIBRARIES = (
    *("torch", "open_clip_torch", "transformers", "tokenizers", "numba", "numpy", "scipy"),
    "pillow",
)

DataHashes = Mapping[tuple[str, str], str]
"""SHA-256 of the examples by task and split, or task and corruption."""
Experts = Mapping[tuple[int, str], Expert]
"""Finished experts by seed and task; the multi-task model of a seed as that of `multi_task`."""


def prepare_data(
    suite: Suite, pool: WorkerPool, display: Display, *, corrupted: bool = True
) -> dict[tuple[str, str], str]:
    """Make every split's examples ready, downloaded corruptions too where wanted; their hashes."""
    wanted: list[tuple[str, str]] = [(t.name, split) for t in suite.tasks for split in Split]
    wanted += [(task.name, Split.TEST) for task in suite.unseen]
    jobs = [Job("prepare", (suite.name, task, split)) for task, split in wanted]
    # Those that are computed follow from the test split.
    download = corrupted and suite.datasets()
    fetched = [(t, c) for t in suite.corrupted for c in suite.corruptions if download]
    jobs += [Job("prepare_corrupted", (suite.name, *cell)) for cell in fetched]
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
    workers: Sequence[Introduction],
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
    budget = training_budget(suite, settings, workers) if missing else None
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
        jobs = [Job("train", (suite.name, spec, root)) for spec in todo]
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
            Job("collect", (suite.name, specs[seed, need, task], experts[seed, task].weights, root))
            for seed, need, task in missing
        ]
        pool.run(jobs, on_done=lambda _index, _path: stage.advance())
        stage.count(done=len(missing), reused=len(specs) - len(missing))
        stage.note(f"of {settings.examples} training examples each, in {root}")
    return tuple((*key, str(spec.path(root))) for key, spec in specs.items())


def make_workload(
    experiment: Experiment,
    suite: Suite,
    hashes: DataHashes,
    experts: Experts,
    statistics: tuple[Statistic, ...] = (),
) -> Workload:
    """What all scores of the run have in common."""
    seeds = range(experiment.seeds)
    tasks = [task.name for task in suite.tasks]
    data = content_key(sorted([*key, value] for key, value in hashes.items()))
    base = sha256_file(suite.base_path())[:12]
    posed = content_key(
        [[t.name, t.class_names, t.templates, t.metric] for t in (*suite.tasks, *suite.unseen)]
    )

    def inputs(seed: int) -> tuple[tuple[str, str], ...]:
        weights = content_key([experts[seed, task].sha256 for task in tasks])
        limits = f"{experiment.limit}/{experiment.corruption_limit}"
        return (
            ("base", base),
            ("data", data),
            ("tasks", posed),
            ("experts", weights),
            ("examples", limits),
            ("code", source_hash(*_SCORING_CODE)),
            ("versions", content_key(library_versions(*_SCORING_LIBRARIES))),
        )

    return Workload(
        suite=suite.name,
        run_dir=experiment.folder.resolve(),
        experts=tuple(
            (seed, tuple((task, str(experts[seed, task].weights)) for task in tasks))
            for seed in seeds
        ),
        inputs=tuple((seed, inputs(seed)) for seed in seeds),
        data=tuple(sorted(hashes.items())),
        statistics=statistics,
        limit=experiment.limit,
        corruption_limit=experiment.corruption_limit,
        joint=tuple(
            (seed, str(expert.weights), expert.sha256)
            for (seed, name), expert in experts.items()
            if name == MULTI_TASK
        ),
    )


@dataclass(frozen=True)
class Searched:
    """A finished study."""

    study: Study
    trials: tuple[Record, ...]
    """In the order in which they were suggested."""
    best: Record
    """The best trial by validation."""


def search(
    experiment: Experiment,
    suite: Suite,
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Searched]:
    """Search the parameters of every method that has some."""
    rank = merged_rank(suite)
    studies = [
        Study(
            method,
            seed,
            experiment.effective_trials,
            rank,
            len(suite.tasks),
            tuple(experiment.settings_of(suite, method).items()),
        )
        for seed in range(experiment.seeds)
        for method in experiment.methods
        if searched(methods[method])
    ]
    journals = {study: _journal_path(experiment, study, workload) for study in studies}
    missing = [study for study in studies if not journals[study].exists()]
    total = sum(study.trials for study in studies)
    before = len(store.keys(Kind.TRIAL))
    with display.stage(
        "search", total, sum(s.trials for s in studies if s not in missing)
    ) as stage:
        if missing:
            scratch = experiment.folder / "tune"
            found = run_searches(missing, workload, pool.handles, scratch, stage.advance)
            for study, keys in found.items():
                write_json(journals[study], {"study": asdict(study), "trials": keys})
        done = len(store.keys(Kind.TRIAL)) - before
        stage.count(done=done, reused=total - done)
    tasks = [task.name for task in suite.tasks]
    finished = []
    for study in studies:
        keys = json.loads(journals[study].read_text(encoding="utf-8"))["trials"]
        trials = tuple(_recorded(store, Kind.TRIAL, key) for key in keys)
        finished.append(Searched(study, trials, best_trial(trials, tasks)))
    return finished


def _journal_path(experiment: Experiment, study: Study, workload: Workload) -> Path:
    """Where a finished study's trials are listed, under a name that says what determined them."""
    key = content_key(
        [
            asdict(study),
            workload.inputs_of(study.seed),
            source_hash("tune.search", "tune.studies"),
            library_versions("optuna", "ray"),
        ]
    )
    return experiment.folder / "records" / "search" / f"{study.method}-seed{study.seed}-{key}.json"


def _recorded(store: RecordStore, kind: Kind, key: str) -> Record:
    record = store.get(kind, key)
    if record is None:
        raise FileNotFoundError(
            f"the record of {kind} {key} was written, but {store.root} does not have it; the run "
            f"folder must lie on storage that all machines share, and keep what is in it"
        )
    return record


def evaluation_jobs(experiment: Experiment, winners: Sequence[Searched]) -> list[ScoreJob]:
    """Every row of the table: references, published settings, and each search's winner."""
    jobs = []
    for seed in range(experiment.seeds):
        jobs += [
            ScoreJob(Purpose.FINAL, name, Variant.REFERENCE, seed)
            for name in experiment.references
            # No seed enters the pretrained model.
            if name != PRETRAINED or seed == 0
        ]
        jobs += [
            ScoreJob(Purpose.FINAL, method, Variant.PUBLISHED, seed)
            for method in experiment.methods
            if not searched(methods[method])
        ]
    for winner in winners:
        study = winner.study
        published = tuple(study.published.as_dict().items())
        tuned = trial_job(study, winner.best.params, 0).params
        variants = {Variant.PUBLISHED: published} if experiment.published_rows else {}
        for variant, params in {**variants, Variant.TUNED: tuned}.items():
            jobs.append(ScoreJob(Purpose.FINAL, study.method, variant, study.seed, params))
    return jobs


def evaluate(
    jobs: Sequence[ScoreJob],
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Record]:
    """Score every row once on test data; the records, in the order of the jobs.

    Of rows that differ in their variant alone, as where a search found nothing better than the
    published settings, one is scored.
    """
    keys = [job.key(workload) for job in jobs]
    found = {key: store.get(Kind.EVALUATION, key) for key in keys}
    rows: dict[ScoreJob, list[ScoreJob]] = {}  # the same merge -> its rows
    for job in jobs:
        rows.setdefault(replace(job, variant=Variant.PUBLISHED), []).append(job)
    known = {
        merge: record
        for merge, alike in rows.items()
        for job in alike
        if (record := found[job.key(workload)]) is not None
    }
    missing = [merge for merge in rows if merge not in known]
    reused = sum(record is not None for record in found.values())
    with display.stage("evaluation", len(jobs), reused) as stage:
        pool.run(
            [Job("score", (workload, rows[merge][0])) for merge in missing],
            on_done=lambda _index, _accuracy: stage.advance(),
        )
        for merge in missing:
            known[merge] = _recorded(store, Kind.EVALUATION, rows[merge][0].key(workload))
        for merge, alike in rows.items():
            for job in alike:
                if store.get(Kind.EVALUATION, job.key(workload)) is None:
                    store.add_again(known[merge], job.variant)
                    stage.advance(done=0)
    return [_recorded(store, Kind.EVALUATION, key) for key in keys]


def measure_geometry(
    experiment: Experiment,
    jobs: Sequence[ScoreJob],
    workload: Workload,
    pool: WorkerPool,
    display: Display,
) -> None:
    """Hold the first seed's merges against its task vectors: tuned rows, others where none are."""
    if not experiment.geometry or EXPERTS not in experiment.references:
        return
    chosen: dict[str, ScoreJob] = {}
    for job in jobs:
        if job.seed == 0 and (job.method == EXPERTS or job.variant is not Variant.REFERENCE):
            chosen[job.method] = job  # a tuned row follows the published one
    missing = [
        job for job in chosen.values() if not is_measured(experiment.folder, job.key(workload))
    ]
    with display.stage("geometry", len(chosen), len(chosen) - len(missing)) as stage:
        pool.run(
            [Job("measure", (workload, job)) for job in missing],
            on_done=lambda _index, _nothing: stage.advance(),
        )


def report(experiment: Experiment, suite: Suite, display: Display) -> Report:
    """Write the report's page, tables and figures into the run folder."""
    with display.stage("report", 1) as stage:
        # Those with APGD before them have names of their own.
        named = {name: methods[name] for name in (*methods, *experiment.methods)}
        axes = {
            name: [Axis(name=p.name, meaning=p.meaning, log=p.log) for p in searched(method)]
            for name, method in named.items()
        }
        made = build_report(
            experiment.folder,
            titles={name: method.title for name, method in named.items()},
            axes=axes,
            needs={name: method.needs for name, method in named.items()},
            tolerance=experiment.tolerance,
            samples={
                task.name: suite.examples(task.name, Split.TEST).first(_SAMPLES)
                for task in (*suite.tasks, *suite.unseen)
                # A driver that only hands out work downloads nothing for the pictures alone.
                if not suite.datasets() or suite.has_examples(task.name, Split.TEST)
            },
        )
        write_report(made, experiment.folder)
        stage.advance()
        stage.note(f"{experiment.folder / 'report.html'}")
    return made
