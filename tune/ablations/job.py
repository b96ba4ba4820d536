"""The whole job: experts come in, merges are scored, each ablation says what it found."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apgd.files import atomic_path, write_text
from tune.ablations.bench import Bench
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.finding import Finding
from tune.ablations.means import published_means
from tune.ablations.noise import cells
from tune.ablations.page import document
from tune.ablations.planning import show_ablation_plan
from tune.ablations.scoring import NotDoneError, Scoring, studies
from tune.ablations.settings import ABLATIONS, AblationSettings
from tune.begin import begin, make_experts, send_rest
from tune.evaluators import ScoreJob
from tune.experiment import check, merged_rank
from tune.manifest import Manifest
from tune.report.markdown import render_markdown
from tune.report.page import render_page
from tune.search.stage import bases_bytes


def run_ablations(settings: AblationSettings, console: Console) -> None:
    """Do the chosen ablations, reusing whatever an earlier run left.

    The report also has those that earlier runs have done.
    """
    settings = settings.cut()
    if settings.plan or settings.plan_for is not None:
        show_ablation_plan(settings, console)
        return
    check(settings)
    if settings.sync:
        send_rest(settings, console)
        return
    suite, folder, manifest = settings.full_suite, settings.folder, Manifest()
    cells = [(seed, 0) for seed in range(settings.seeds)]
    shared, title = bases_bytes(studies(settings, suite, cells), suite), "ablations of DOGE TA"
    with begin(settings, console, title=f"apgd {suite.name}: {title}", shared_bytes=shared) as run:
        made, store = make_experts(run), run.store
        with run.placement.scoring() as pool:
            scoring = Scoring(settings, suite, made.workload, pool, store, run.display)
            bench = Bench(
                settings, suite, merged_rank(suite), made.workload, store,
                scoring.score, scoring.search,
            )  # fmt: skip
            console.print(_plan(bench, scoring))
            findings = _findings(bench, scoring)
        records = sorted(scoring.records.values(), key=lambda record: record.key)
        means = published_means(records, [task.name for task in suite.tasks])
        page = document(findings, manifest.write(run, made, records, means))
        write_text(folder / "report.html", render_page(page))
        write_text(folder / "report.md", render_markdown(page))
        run.tracker.finish(complete=True)
    for name in settings.only:
        console.print(f"\n{name}: {findings[name].sentence}", markup=False, highlight=False)
    for what, where in (
        ("report", folder / "report.html"),
        ("tables", folder / "ablations"),
        ("MLflow", run.tracker.how_to_look),
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
