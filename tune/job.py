"""The whole job of an experiment: experts come in, a report comes out."""

from contextlib import ExitStack

from rich.console import Console

from tune.cluster import ray_session
from tune.experiment import Experiment, check, exclusive, without_credentials
from tune.experts import (
    collect_statistics,
    prepare_data,
    record_experts,
    train_experts,
)
from tune.manifest import Manifest
from tune.objectives import Objective
from tune.placement import place
from tune.progress import Display
from tune.records import RecordStore
from tune.report.console import as_rich
from tune.searches import bases_bytes, search, studies_of
from tune.stages import (
    evaluate,
    evaluation_jobs,
    make_workload,
    measure_geometry,
    report,
)
from tune.storage import open_storage, storage_url
from tune.tracking import Tracker, synchronise


def run_experiment(experiment: Experiment, console: Console) -> None:
    """Do the whole job, reusing whatever an earlier run of the same experiment left."""
    check(experiment)
    suite = experiment.full_suite
    store = RecordStore(experiment.folder)
    manifest = Manifest(experiment, suite)
    with ExitStack() as stack:
        stack.enter_context(exclusive(experiment))
        if experiment.sync:
            console.print(synchronise(experiment), markup=False, soft_wrap=True)
            return
        display = stack.enter_context(Display(console, experiment.folder / "run.log"))
        display.say(f"apgd {suite.name}: {suite.title}")
        display.say(f"results go to {experiment.folder}")
        open_storage(experiment)  # before work starts: a database that cannot be opened
        cluster = stack.enter_context(
            ray_session(
                address=experiment.address,
                cpus=experiment.cpus,
                dashboard=experiment.dashboard,
                most_workers=len(suite.tasks) * experiment.seeds,
                shared_bytes=bases_bytes(studies_of(experiment, suite), suite),
                wanted_gpus=experiment.gpus,
                say=display.say,
            )
        )
        display.say(str(cluster))
        tracker = stack.enter_context(Tracker(experiment, display.say))
        placement = place(experiment, suite, cluster, display.say)

        # Experts come in, task vectors are made, ...
        with placement.preparing() as pool:
            hashes = prepare_data(
                suite, pool, display,
                corrupted=experiment.corruptions,
                unseen_validation=Objective.UNSEEN in experiment.objectives,
            )  # fmt: skip
        with placement.training() as pool:
            experts = train_experts(experiment, suite, hashes, pool, display)
            expert_keys = record_experts(experts, store)
            statistics = collect_statistics(experiment, suite, hashes, experts, pool, display)
        workload = make_workload(experiment, suite, hashes, experts, statistics)

        # ... a method merges them, validation chooses its parameters, the suite judges each row
        # once on test data, and a tracker keeps it.
        with placement.scoring() as pool:
            searches = search(experiment, suite, workload, pool, store, display)
            jobs = evaluation_jobs(experiment, searches)
            rows = evaluate(jobs, workload, pool, store, display)
            measure_geometry(experiment, jobs, workload, pool, display)
        manifest.write(
            cluster, hashes, experts, expert_keys, display.stages, placement.met, searches, rows
        )
        made = report(experiment, suite, display)
        tracker.finish(complete=True)
    if experiment.compare:
        if "comparison" in made.tables:
            console.print(as_rich(made.tables["comparison"]))
        console.print(f"compared: {made.compared}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(made.markdown, markup=False, highlight=False, soft_wrap=True)
    for what, where in (
        ("report", experiment.folder / "report.html"),
        ("records", experiment.folder / "records"),
        ("log", experiment.folder / "run.log"),
        ("MLflow", tracker.how_to_look),
        ("search", f"uvx optuna-dashboard {without_credentials(storage_url(experiment))}"),
    ):
        console.print(f"{what:<8}{where}", highlight=False, markup=False, soft_wrap=True)
