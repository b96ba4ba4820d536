"""The whole job of an experiment: experts come in, a report comes out."""

from rich.console import Console

from apgd.masking import masked_address
from tune.begin import begin, make_experts, send_rest
from tune.experiment import Experiment, check
from tune.log import LOG_FILE
from tune.manifest import Manifest, row_means
from tune.planning.plan import show_plan
from tune.report.console import as_rich
from tune.search.stage import bases_bytes, search, studies_of
from tune.search.storage import storage_url
from tune.stages import evaluate, evaluation_jobs, measure_geometry, report


def run_experiment(experiment: Experiment, console: Console) -> None:
    """Do the whole job, reusing whatever an earlier run of the same experiment left."""
    if experiment.plan or experiment.plan_for is not None:
        show_plan(experiment, console)
        return
    check(experiment)
    if experiment.sync:
        send_rest(experiment, console)
        return
    suite = experiment.full_suite
    manifest = Manifest()
    shared = bases_bytes(studies_of(experiment, suite), suite)
    title = f"apgd {suite.name}: {suite.title}"
    with begin(experiment, console, title=title, shared_bytes=shared) as run:
        # Experts come in, task vectors are made, ...
        made = make_experts(run)

        # ... a method merges them, validation chooses its parameters, the suite judges each row
        # once on test data, and a tracker keeps it.
        with run.placement.scoring() as pool:
            given = (made.workload, pool, run.store, run.display)
            searches = search(experiment, suite, *given)
            jobs = evaluation_jobs(experiment, searches)
            rows = evaluate(jobs, *given)
            measure_geometry(experiment, jobs, made.workload, pool, run.display)
        trials = [trial for searched in searches for trial in searched.trials]
        means = row_means(rows, [task.name for task in suite.tasks])
        manifest.write(run, made, [*trials, *rows], means)
        written = report(experiment, suite, run.display)
        run.tracker.finish(complete=True)
    if experiment.compare:
        if "comparison" in written.tables:
            console.print(as_rich(written.tables["comparison"]))
        compared = f"compared: {written.compared}"
        console.print(compared, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(written.markdown, markup=False, highlight=False, soft_wrap=True)
    for what, where in (
        ("report", experiment.folder / "report.html"),
        ("records", experiment.folder / "records"),
        ("log", experiment.folder / LOG_FILE),
        ("MLflow", run.tracker.how_to_look),
        ("search", f"uvx optuna-dashboard {masked_address(storage_url(experiment))}"),
    ):
        console.print(f"{what:<8}{where}", highlight=False, markup=False, soft_wrap=True)
