"""The whole job: experts come in, merges are scored, each ablation says what it found."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apgd.files import atomic_path, sha256_file, write_json, write_text
from apgd.suites import Suite
from tune.ablations.bench import Bench
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.finding import Finding
from tune.ablations.page import document
from tune.ablations.settings import ABLATIONS, AblationSettings
from tune.cluster import Cluster, ray_session
from tune.evaluators import ScoreJob, Workload, mean_score
from tune.experiment import check, exclusive, merged_rank, scoring_bytes
from tune.experts import DataHashes, Experts, prepare_data, record_experts, train_experts
from tune.manifest import command_line, describe_machine, describe_suite, git_state, now, versions
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.report.markdown import render_markdown
from tune.report.page import render_page
from tune.stages import make_workload
from tune.tracking import Tracker, synchronise
from tune.workers import Introduction, Job, WorkerPool


class _Scoring:
    """Scores jobs on the workers, and knows which records the run is made of."""

    def __init__(
        self, workload: Workload, pool: WorkerPool, store: RecordStore, display: Display
    ) -> None:
        self._workload, self._pool, self._store = workload, pool, store
        self._display = display
        self.records: dict[str, Record] = {}
        """Every record that was asked for, by key."""

    def missing(self, jobs: Sequence[ScoreJob]) -> list[ScoreJob]:
        """Those without a record."""
        return [job for job in jobs if self._get(job) is None]

    def _get(self, job: ScoreJob) -> Record | None:
        return self._store.get(job.purpose.kind, job.key(self._workload))

    def __call__(self, stage: str, jobs: Sequence[ScoreJob]) -> None:
        missing = self.missing(jobs)
        with self._display.stage(stage, len(jobs), len(jobs) - len(missing)) as view:
            self._pool.run(
                [Job("score", (self._workload, job)) for job in missing],
                on_done=lambda _index, _score: view.advance(),
            )
        for job in jobs:
            record = self._get(job)
            if record is None:
                raise FileNotFoundError(
                    f"{job.method} of seed {job.seed} was scored, but {self._store.root} does not "
                    f"have its record; the run folder must lie on storage that all machines share"
                )
            self.records[record.key] = record


def run_ablations(settings: AblationSettings, console: Console) -> None:
    """Do the chosen ablations, reusing whatever an earlier run left."""
    cut = settings.cut()
    check(cut)
    suite = cut.full_suite
    started = now()
    store = RecordStore(cut.folder)
    with ExitStack() as stack:
        stack.enter_context(exclusive(cut))
        if cut.sync:
            console.print(synchronise(cut), markup=False, soft_wrap=True)
            return
        display = stack.enter_context(Display(console))
        display.say(f"apgd {suite.name}: ablations of DOGE TA")
        display.say(f"results go to {cut.folder}")
        cluster = stack.enter_context(
            ray_session(
                address=cut.address,
                cpus=cut.cpus,
                dashboard=cut.dashboard,
                most_workers=len(suite.tasks),
            )
        )
        display.say(str(cluster))
        tracker = stack.enter_context(Tracker(cut, display.say))
        pool = WorkerPool(cluster)
        workers = pool.introduce(cut.folder, scoring_bytes(suite))
        hashes = prepare_data(suite, pool, display, corrupted=False)
        experts = train_experts(cut, suite, hashes, pool, workers, display)
        record_experts(experts, store)
        workload = make_workload(cut, suite, hashes, experts)
        scoring = _Scoring(workload, pool, store, display)
        bench = Bench(cut, suite, merged_rank(suite), workload, store, scoring)
        names = [name for name in ABLATIONS if name in cut.only]
        console.print(_plan(bench, names, scoring))

        findings = {}
        for name in names:
            wanted = CATALOGUE[name].planned(bench)
            if wanted:
                bench.score(name, wanted)
            findings[name] = CATALOGUE[name].find(bench)
            _write(findings[name], name, cut.folder)
        manifest = _manifest(
            settings, suite, cluster, workers, hashes, experts, display, scoring.records, bench
        ) | {"started": started}
        write_json(cut.folder / "manifest.json", manifest)
        made = document(findings, manifest)
        write_text(cut.folder / "report.html", render_page(made))
        write_text(cut.folder / "report.md", render_markdown(made))
        tracker.finish(complete=True)
    for name, finding in findings.items():
        console.print(f"\n{name}: {finding.sentence}", markup=False, highlight=False)
    for what, where in (
        ("report", cut.folder / "report.html"),
        ("tables", cut.folder / "ablations"),
        ("MLflow", tracker.how_to_look),
    ):
        console.print(f"{what:<8}{where}", highlight=False, markup=False, soft_wrap=True)


def _plan(bench: Bench, names: Sequence[str], scoring: _Scoring) -> Table:
    """What is going to be scored, for the console."""
    table = Table("ablation", "merges", "validation", "test", "on disk", box=None)
    seen: set[ScoreJob] = set()
    for name in names:
        jobs = {merge.job(seed) for merge, seed in CATALOGUE[name].planned(bench)}
        new = jobs - seen
        seen |= jobs
        splits = Counter(str(job.purpose.reads) for job in new)
        table.add_row(
            name,
            str(len(new)) if jobs else "as the search goes",
            str(splits["validation"]),
            str(splits["test"]),
            str(len(new) - len(scoring.missing(list(new)))),
        )
    return table


def _write(finding: Finding, name: str, folder: Path) -> None:
    write_text(folder / "ablations" / f"{name}.csv", finding.csv(name))
    if finding.figure is None:
        return
    plot = finding.figure.plot
    write_text(folder / "figures" / f"{plot.name}.svg", finding.figure.svg)
    with atomic_path(folder / "figures" / f"{plot.name}.png") as temporary:
        temporary.write_bytes(plot.png)


def _manifest(
    settings: AblationSettings,
    suite: Suite,
    cluster: Cluster,
    workers: Sequence[Introduction],
    hashes: DataHashes,
    experts: Experts,
    display: Display,
    records: Mapping[str, Record],
    bench: Bench,
) -> dict[str, Any]:
    """What the report is made of, as JSON values."""
    reads = Counter(split for record in records.values() for split in record.details["reads"])
    return {
        "experiment": {"name": settings.name, **settings.as_dict()},
        "seeds": len(bench.seeds),
        "suite": describe_suite(suite, corrupted=False),
        "versions": versions(),
        **git_state(),
        "machine": describe_machine(cluster, workers),
        "hashes": {
            "base": sha256_file(suite.base_path()),
            "experts": {
                f"{task}-seed{seed}": expert.sha256
                for (seed, task), expert in sorted(experts.items())
            },
            "data": {f"{task}/{split}": h for (task, split), h in sorted(hashes.items())},
        },
        "command": command_line(),
        "finished": now(),
        "stages": [stage.as_dict() for stage in display.stages],
        "split_reads": dict(sorted(reads.items())),
        "records": sorted(records),
        "results": _means(records.values(), bench.tasks),
    }


def _means(records: Iterable[Record], tasks: tuple[str, ...]) -> dict[str, float]:
    """Mean test score, over seeds, of the experts and of published settings on all tasks."""
    found: dict[str, list[float]] = {}
    for record in records:
        whole = record.inputs.get("merged", ",".join(tasks)) == ",".join(tasks)
        plain = record.variant is not Variant.TUNED and record.kind is Kind.EVALUATION
        if whole and plain:
            row = f"{record.method}-{record.variant}"
            found.setdefault(row, []).append(mean_score(record, tasks))
    return {row: sum(values) / len(values) for row, values in found.items()}
