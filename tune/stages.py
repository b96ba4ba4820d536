"""The stages of the main job, one function each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apgd.data import Split
from apgd.files import content_key, sha256_file
from apgd.finetune import Expert, ExpertSpec, expert_spec, find_expert
from apgd.methods import methods
from apgd.suites import Suite
from tune.evaluators import EXPERTS, PRETRAINED, Purpose, ScoreJob, Workload
from tune.experiment import Experiment, merged_rank
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.report import Axis, Report, build_report, write_report
from tune.search import Study, best_trial, run_searches, searched, trial_job, trials_of
from tune.workers import Job, WorkerPool

_SAMPLES = 16

DataHashes = Mapping[tuple[str, str], str]
"""SHA-256 of the examples by task and split."""
Experts = Mapping[tuple[int, str], Expert]
"""Finished experts by seed and task."""


def prepare_data(suite: Suite, pool: WorkerPool, display: Display) -> dict[tuple[str, str], str]:
    """Make every split's examples ready; their hashes."""
    wanted = [(task.name, split) for task in suite.tasks for split in Split]
    wanted += [(task.name, Split.TEST) for task in suite.unseen]
    jobs = [Job("prepare", (suite.name, task, split)) for task, split in wanted]
    with display.stage("data", len(jobs)) as stage:
        hashes = pool.run(jobs, on_done=lambda _index, _hash: stage.advance())
        stage.note(f"{len(suite.tasks)} tasks, {len(suite.unseen)} unseen")
    return {(task, str(split)): h for (task, split), h in zip(wanted, hashes, strict=True)}


def train_experts(
    experiment: Experiment,
    suite: Suite,
    hashes: DataHashes,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> dict[tuple[int, str], Expert]:
    """Fine-tune the experts that do not exist yet; all experts."""
    settings = experiment.finetune_settings(suite)
    root = experiment.experts_dir.resolve()
    specs = {
        (seed, task.name): expert_spec(
            suite, task.name, seed, settings, hashes[task.name, Split.TRAIN]
        )
        for seed in range(experiment.seeds)
        for task in suite.tasks
    }
    missing = {key: spec for key, spec in specs.items() if find_expert(spec, root) is None}
    steps = settings.steps
    with display.stage("experts", steps * len(specs), steps * (len(specs) - len(missing))) as stage:
        done = len(specs) - len(missing)

        def finished(_index: int, _manifest: Any) -> None:
            nonlocal done
            done += 1

        def progressed(running: Mapping[int, tuple[int, int]]) -> None:
            stage.at(done * steps + sum(at for at, _total in running.values()))

        jobs = [Job("train", (spec, root)) for spec in missing.values()]
        pool.run(jobs, on_done=finished, on_progress=progressed)
        stage.count(done=len(missing), reused=len(specs) - len(missing))
        stage.note(f"in {experiment.experts_dir}")
    experts = {key: _existing(spec, root) for key, spec in specs.items()}
    for (seed, task), expert in experts.items():
        store.add(_expert_record(task, seed, expert, specs[seed, task]))
    return experts


def _existing(spec: ExpertSpec, root: Path) -> Expert:
    expert = find_expert(spec, root)
    if expert is None:
        raise FileNotFoundError(
            f"expert {spec.task} was trained, but {spec.folder(root)} is not visible here; "
            f"experts must lie on storage that all machines share"
        )
    return expert


def _expert_record(task: str, seed: int, expert: Expert, spec: ExpertSpec) -> Record:
    manifest = expert.manifest
    return Record(
        kind=Kind.EXPERT,
        method=task,
        variant=Variant.REFERENCE,
        seed=seed,
        params={
            "steps": spec.settings.steps,
            "batch_size": spec.settings.batch_size,
            "learning_rate": spec.settings.learning_rate,
            "weight_decay": spec.settings.weight_decay,
        },
        inputs={"weights": expert.sha256, "data": spec.data_sha256, "base": spec.base_sha256},
        scores={},
        seconds={"train": manifest["seconds"]},
        details={
            "tau_norm_ratio": manifest["tau_norm_ratio"],
            "last_loss": manifest["last_loss"],
            "device": manifest["device"],
            "threads": manifest["threads"],
            "steps": spec.settings.steps,
        },
    )


def make_workload(
    experiment: Experiment, suite: Suite, hashes: DataHashes, experts: Experts
) -> Workload:
    """What all scores of the run have in common."""
    seeds = range(experiment.seeds)
    tasks = [task.name for task in suite.tasks]
    data = content_key(sorted([*key, value] for key, value in hashes.items()))
    base = sha256_file(suite.base_path())[:12]

    def inputs(seed: int) -> tuple[tuple[str, str], ...]:
        weights = content_key([experts[seed, task].sha256 for task in tasks])
        limits = f"{experiment.limit}/{experiment.corruption_limit}"
        return (("base", base), ("data", data), ("experts", weights), ("examples", limits))

    return Workload(
        suite=suite.name,
        run_dir=experiment.folder.resolve(),
        experts=tuple(
            (seed, tuple((task, str(experts[seed, task].weights)) for task in tasks))
            for seed in seeds
        ),
        inputs=tuple((seed, inputs(seed)) for seed in seeds),
        limit=experiment.limit,
        corruption_limit=experiment.corruption_limit,
    )


@dataclass(frozen=True)
class Winner:
    """The best trial of a study by validation, and its neighbours in the books."""

    study: Study
    trial: Record


def search(
    experiment: Experiment,
    suite: Suite,
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Winner]:
    """Search the parameters of every method that has some; the best trial of each study."""
    rank = merged_rank(suite)
    studies = [
        Study(method, seed, experiment.effective_trials, rank, len(suite.tasks))
        for seed in range(experiment.seeds)
        for method in experiment.methods
        if searched(methods[method])
    ]

    def finished(study: Study) -> list[Record]:
        return trials_of(store, study, workload.inputs_of(study.seed))

    total = sum(study.trials for study in studies)
    before = sum(len(finished(study)) for study in studies)
    missing = [study for study in studies if len(finished(study)) < study.trials]
    with display.stage("search", total, min(before, total)) as stage:
        if missing:
            failed = run_searches(
                missing,
                workload,
                pool.handles,
                experiment.folder / "tune",
                on_trial=lambda: stage.at(sum(len(finished(study)) for study in studies)),
            )
            if failed:
                display.say(f"! {failed} trials failed and take no part; Ray's logs say why")
        after = sum(len(finished(study)) for study in studies)
        stage.count(done=after - before, reused=before)
    tasks = [task.name for task in suite.tasks]
    return [Winner(study, best_trial(finished(study), tasks)) for study in studies]


def evaluation_jobs(experiment: Experiment, winners: Sequence[Winner]) -> list[ScoreJob]:
    """Every row of the table: references, published settings, and each search's winner."""
    jobs = [ScoreJob(Purpose.FINAL, PRETRAINED, Variant.REFERENCE, 0)]
    for seed in range(experiment.seeds):
        jobs.append(ScoreJob(Purpose.FINAL, EXPERTS, Variant.REFERENCE, seed))
        jobs += [
            ScoreJob(Purpose.FINAL, method, Variant.PUBLISHED, seed)
            for method in experiment.methods
            if not searched(methods[method])
        ]
    for winner in winners:
        study = winner.study
        published = tuple(study.published.as_dict().items())
        tuned = trial_job(study, winner.trial.params, 0).params
        for variant, params in ((Variant.PUBLISHED, published), (Variant.TUNED, tuned)):
            jobs.append(ScoreJob(Purpose.FINAL, study.method, variant, study.seed, params))
    return jobs


def evaluate(
    jobs: Sequence[ScoreJob],
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Record]:
    """Score every row once on test data; the records, in the order of the jobs."""
    keys = [job.key(workload) for job in jobs]
    missing = [
        job for job, key in zip(jobs, keys, strict=True) if store.get(Kind.EVALUATION, key) is None
    ]
    with display.stage("evaluation", len(jobs), len(jobs) - len(missing)) as stage:
        pool.run(
            [Job("score", (workload, job)) for job in missing],
            on_done=lambda _index, _accuracy: stage.advance(),
        )
    records = [store.get(Kind.EVALUATION, key) for key in keys]
    return [record for record in records if record is not None]


def split_reads(store: RecordStore, workload: Workload) -> dict[str, int]:
    """How many trials were scored on validation data, and how many rows on test data."""
    inputs = [workload.inputs_of(seed) for seed, _ in workload.inputs]
    return {
        str(purpose.reads): sum(dict(r.inputs) in inputs for r in store.all(purpose.kind))
        for purpose in Purpose
    }


def report(experiment: Experiment, suite: Suite, display: Display) -> Report:
    """Write the report's page, tables and figures into the run folder."""
    with display.stage("report", 1) as stage:
        axes = {
            name: [Axis(name=p.name, meaning=p.meaning, log=p.log) for p in searched(methods[name])]
            for name in experiment.methods
        }
        made = build_report(
            experiment.folder,
            titles={name: methods[name].title for name in experiment.methods},
            axes=axes,
            samples={
                task.name: suite.examples(task.name, Split.TEST).images[:_SAMPLES]
                for task in (*suite.tasks, *suite.unseen)
            },
        )
        write_report(made, experiment.folder)
        stage.advance()
        stage.note(f"{experiment.folder / 'report.html'}")
    return made
