"""The whole job: experts come in, merges are scored, each ablation says what it found."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apgd.files import atomic_path, write_json, write_text
from tune.ablations.bench import Bench
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.finding import Finding
from tune.ablations.manifest import describe
from tune.ablations.noise import cells
from tune.ablations.page import document
from tune.ablations.scoring import NotDoneError, Scoring, studies
from tune.ablations.settings import ABLATIONS, AblationSettings
from tune.cluster import ray_session
from tune.evaluators import ScoreJob
from tune.experiment import check, exclusive, merged_rank
from tune.experts import collect_statistics, prepare_data, record_experts, train_experts
from tune.manifest import now
from tune.placement import place
from tune.progress import Display
from tune.records import RecordStore
from tune.report.markdown import render_markdown
from tune.report.page import render_page
from tune.searches import bases_bytes
from tune.stages import make_workload
from tune.storage import open_storage
from tune.tracking import Tracker, synchronise


def run_ablations(settings: AblationSettings, console: Console) -> None:
    """Do the chosen ablations, reusing whatever an earlier run left.

    The report also has those that earlier runs have done.
    """
    settings = settings.cut()
    check(settings)
    suite, folder, started = settings.full_suite, settings.folder, now()
    store = RecordStore(folder)
    with ExitStack() as stack:
        stack.enter_context(exclusive(settings))
        if settings.sync:
            console.print(synchronise(settings), markup=False, soft_wrap=True)
            return
        display = stack.enter_context(Display(console, folder / "run.log"))
        display.say(f"apgd {suite.name}: ablations of DOGE TA")
        display.say(f"results go to {folder}")
        open_storage(settings)  # before work starts: a database that cannot be opened
        seeds = range(settings.seeds)
        cluster = stack.enter_context(
            ray_session(
                address=settings.address,
                cpus=settings.cpus,
                dashboard=settings.dashboard,
                most_workers=len(suite.tasks) * settings.seeds,
                shared_bytes=bases_bytes(studies(settings, suite, [(s, 0) for s in seeds]), suite),
                wanted_gpus=settings.gpus,
                say=display.say,
            )
        )
        display.say(str(cluster))
        tracker = stack.enter_context(Tracker(settings, display.say))
        placement = place(settings, suite, cluster, display.say)
        with placement.preparing() as pool:
            hashes = prepare_data(suite, pool, display, corrupted=False)
        with placement.training() as pool:
            experts = train_experts(settings, suite, hashes, pool, display)
            record_experts(experts, store)
            statistics = collect_statistics(settings, suite, hashes, experts, pool, display)
        workload = make_workload(settings, suite, hashes, experts, statistics)
        pool = stack.enter_context(placement.scoring())
        scoring = Scoring(settings, suite, workload, pool, store, display)
        bench = Bench(
            settings, suite, merged_rank(suite), workload, store, scoring.score, scoring.search
        )
        console.print(_plan(bench, scoring))

        findings = _findings(bench, scoring)
        manifest = describe(
            settings, suite, started, cluster, placement.met, hashes, experts, display.stages,
            scoring.records,
        )  # fmt: skip
        write_json(folder / "manifest.json", manifest)
        made = document(findings, manifest)
        write_text(folder / "report.html", render_page(made))
        write_text(folder / "report.md", render_markdown(made))
        tracker.finish(complete=True)
    for name in settings.only:
        console.print(f"\n{name}: {findings[name].sentence}", markup=False, highlight=False)
    for what, where in (
        ("report", folder / "report.html"),
        ("tables", folder / "ablations"),
        ("MLflow", tracker.how_to_look),
    ):
        console.print(f"{what:<8}{where}", highlight=False, markup=False, soft_wrap=True)


def _plan(bench: Bench, scoring: Scoring) -> Table:
    """What is going to be scored, for the console; what several need counts for the first."""
    table = Table("ablation", "validation", "test", "of them on disk", "besides", box=None)
    seen: set[ScoreJob] = set()
    for name in _chosen(bench):
        jobs = {merge.job(seed) for merge, seed in CATALOGUE[name].planned(bench)} - seen
        seen |= jobs
        splits = Counter(str(job.purpose.reads) for job in jobs)
        reused = len(jobs) - len(scoring.missing(list(jobs)))
        counts = (splits["validation"], splits["test"], reused)
        table.add_row(name, *map(str, counts), _besides(name, bench))
    return table


def _besides(name: str, bench: Bench) -> str:
    """What an ablation does that depends on what it finds."""
    if name == "solver":
        return f"up to {2 * len(bench.seeds)} on test"
    if name == "noise" and len(bench.seeds) > 1:
        count = len(cells(bench))
        return f"{count} searches of {bench.settings.effective_trials}, up to {count} on test"
    return ""


def _chosen(bench: Bench) -> Sequence[str]:
    return [name for name in ABLATIONS if name in bench.settings.only]


def _findings(bench: Bench, scoring: Scoring) -> dict[str, Finding]:
    """What the chosen ablations find, and those that are done already, in the report's order."""
    found, chosen = {}, _chosen(bench)
    for name in chosen:
        found[name] = _find(name, bench)
        _write(found[name], name, bench.settings.folder)
    scoring.computes = False
    for name in ABLATIONS:
        if name not in found:
            try:
                found[name] = _find(name, bench)
            except NotDoneError:
                continue
    shown = [name for name in ABLATIONS if name in found]
    return {name: found[name] for name in shown if name in chosen or found[name].points}


def _find(name: str, bench: Bench) -> Finding:
    ablation = CATALOGUE[name]
    wanted = ablation.planned(bench)
    if wanted:
        bench.score(name, wanted)
    return ablation.find(bench)


def _write(finding: Finding, name: str, folder: Path) -> None:
    write_text(folder / "ablations" / f"{name}.csv", finding.csv(name))
    if finding.figure is None:
        return
    plot = finding.figure.plot
    write_text(folder / "figures" / f"{plot.name}.svg", finding.figure.svg)
    with atomic_path(folder / "figures" / f"{plot.name}.png") as temporary:
        temporary.write_bytes(plot.png)
