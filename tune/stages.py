"""The stages of the main job that follow on experts, one function each."""

from collections.abc import Sequence
from dataclasses import replace

from apgd.data import Split
from apgd.files import content_key, sha256_file
from apgd.methods import methods
from apgd.source import library_versions, source_hash
from apgd.suites import Suite, suites
from tune.evaluators import Purpose, ScoreJob, Statistic, Workload
from tune.experiment import Experiment
from tune.experts import DataHashes, Experts
from tune.geometry import is_measured
from tune.planning.work import longest_first
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.references import EXPERTS, MULTI_TASK, PRETRAINED
from tune.report import Axis, Report, build_report, write_report
from tune.search.stage import Searched
from tune.search.studies import searched
from tune.workers.pool import Job, WorkerPool

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
    "apgd.shared_work",
    "apgd.strips",
    "apgd.subspaces",
    "apgd.suites",
    "apgd.sweep",
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
    base = sha256_file(suite.base_path())
    posed = content_key(
        [[t.name, t.class_names, t.templates, t.metric] for t in (*suite.tasks, *suite.unseen)]
    )

    def inputs(seed: int) -> tuple[tuple[str, str], ...]:
        weights = content_key([experts[seed, task].sha256 for task in tasks])
        limits = f"{experiment.limit}/{experiment.corruption_limit}"
        return (
            ("base", base[:12]),
            ("data", data),
            ("tasks", posed),
            ("experts", weights),
            ("examples", limits),
            ("forward", "compiled" if experiment.compile else "eager"),
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
        base=base,
        weights=tuple(
            (str(expert.weights), expert.sha256)
            for (_seed, task), expert in sorted(experts.items())
            if task != MULTI_TASK
        ),
        statistics=statistics,
        limit=experiment.limit,
        corruption_limit=experiment.corruption_limit,
        compiled=experiment.compile,
        joint=tuple(
            (seed, str(expert.weights), expert.sha256)
            for (seed, name), expert in experts.items()
            if name == MULTI_TASK
        ),
    )


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
        tuned = tuple(winner.best.params.items())
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
    rows = distinct_rows(jobs)
    known = {
        merge: record
        for merge, alike in rows.items()
        for job in alike
        if (record := found[job.key(workload)]) is not None
    }
    missing = longest_first(
        [merge for merge in rows if merge not in known],
        suites[workload.suite],
        workload.limit,
        workload.corruption_limit,
    )
    reused = sum(record is not None for record in found.values())
    with display.stage("evaluation", len(jobs), reused) as stage:
        pool.run(
            [
                Job("score", (workload, rows[merge][0]), f"scoring {merge.told}")
                for merge in missing
            ],
            on_done=lambda _index, _accuracy: stage.advance(),
        )
        for merge in missing:
            known[merge] = store.expect(Kind.EVALUATION, rows[merge][0].key(workload))
        for merge, alike in rows.items():
            for job in alike:
                if store.get(Kind.EVALUATION, job.key(workload)) is None:
                    store.add_again(known[merge], job.variant)
                    stage.advance(done=0)
    return [store.expect(Kind.EVALUATION, key) for key in keys]


def distinct_rows(jobs: Sequence[ScoreJob]) -> dict[ScoreJob, list[ScoreJob]]:
    """Merges that differ, each with the rows that differ in their variant alone."""
    rows: dict[ScoreJob, list[ScoreJob]] = {}
    for job in jobs:
        rows.setdefault(replace(job, variant=Variant.PUBLISHED), []).append(job)
    return rows


def geometry_jobs(experiment: Experiment, jobs: Sequence[ScoreJob]) -> list[ScoreJob]:
    """The rows whose merges are held against their task vectors, if the experiment wants that."""
    if not experiment.geometry or EXPERTS not in experiment.references:
        return []
    chosen: dict[str, ScoreJob] = {}
    for job in jobs:
        if job.seed == 0 and (job.method == EXPERTS or job.variant is not Variant.REFERENCE):
            chosen[job.method] = job  # a tuned row follows the published one
    return list(chosen.values())


def measure_geometry(
    experiment: Experiment,
    jobs: Sequence[ScoreJob],
    workload: Workload,
    pool: WorkerPool,
    display: Display,
) -> None:
    """Hold the first seed's merges against its task vectors: tuned rows, others where none are."""
    chosen = geometry_jobs(experiment, jobs)
    if not chosen:
        return
    missing = [job for job in chosen if not is_measured(experiment.folder, job.key(workload))]
    with display.stage("geometry", len(chosen), len(chosen) - len(missing)) as stage:
        pool.run(
            [Job("measure", (workload, job), f"measuring {job.told}") for job in missing],
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
