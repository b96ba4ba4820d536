"""The plan of the ablations' run, from what each ablation says it wants scored."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from apgd.methods import Value
from tune.ablations.bench import Bench, Cell
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.noise import cells
from tune.ablations.scoring import NotDoneError, studies
from tune.ablations.settings import ABLATIONS, AblationSettings
from tune.evaluators import ScoreJob, Workload
from tune.experiment import merged_rank
from tune.planning.plan import planned
from tune.planning.show import show
from tune.planning.stages import (
    PlannedJob,
    PlannedStage,
    Terms,
    data_stage,
    fetching_stage,
    search_stages,
    statistics_stage,
    training_stage,
)


def show_ablation_plan(settings: AblationSettings, console: Console) -> None:
    """Print what the ablations would do.

    Args:
        settings: already cut down.
        console: where to.
    """
    show(planned(settings, lambda terms: ablation_stages(settings, terms)), console)


def ablation_stages(settings: AblationSettings, terms: Terms) -> list[PlannedStage]:
    """All stages of the ablations' run, but for a few merges that follow from what is found."""
    stages = [data_stage(terms), fetching_stage(terms), training_stage(terms)]
    stages.append(statistics_stage(terms))
    bench = _planning_bench(settings, terms)
    seen: set[ScoreJob] = set()
    for name in (name for name in ABLATIONS if name in settings.only):
        wanted = CATALOGUE[name].planned(bench)
        jobs = list(dict.fromkeys(merge.job(seed) for merge, seed in wanted))
        if jobs:
            missing = [job for job in jobs if job not in seen and not _is_there(job, terms)]
            stages.append(_scoring_stage(name, missing, len(jobs) - len(missing), terms))
            seen.update(jobs)
        if name == "noise" and len(bench.seeds) > 1:
            searching, _trials = search_stages(terms, studies(settings, terms.suite, cells(bench)))
            merge, seed = wanted[0]  # the published settings take as long as any
            stages += [*searching, _tested(merge.job(seed), terms, len(cells(bench)))]
    return [stage for stage in stages if stage is not None]


def _tested(like: ScoreJob, terms: Terms, count: int) -> PlannedStage:
    """The winners of the searches, each once on test data."""
    takes = terms.row(like)
    jobs = tuple(PlannedJob(f"winner {number}", takes) for number in range(count))
    workers = terms.scoring_workers([takes])
    return PlannedStage("noise: test", jobs, 0, workers, "up to: they follow from the search")


def _scoring_stage(
    name: str, missing: Sequence[ScoreJob], reused: int, terms: Terms
) -> PlannedStage:
    jobs = tuple(
        PlannedJob(f"{job.method}, {job.purpose.reads}, seed {job.seed}", terms.row(job))
        for job in missing
    )
    workers = terms.scoring_workers([job.takes for job in jobs])
    note = "and a few on test data, which follow from what is found" if name == "solver" else ""
    return PlannedStage(name, jobs, reused, workers, note)


def _is_there(job: ScoreJob, terms: Terms) -> bool:
    workload = terms.found.workload
    if workload is None:
        return False
    return terms.store.get_whole(job.purpose.kind, job.key(workload)) is not None


def _planning_bench(settings: AblationSettings, terms: Terms) -> Bench:
    """A bench on which ablations say what they want, and get nothing."""

    def refused(_stage: str, _jobs: Sequence[ScoreJob]) -> None:
        raise NotDoneError("a plan scores nothing")

    def unsearched(_cells: Sequence[Cell]) -> Mapping[Cell, Mapping[str, Value]]:
        raise NotDoneError("a plan searches nothing")

    nothing = Workload(
        terms.suite.name, settings.folder, (), (), settings.limit, settings.corruption_limit
    )
    rank = merged_rank(terms.suite)
    return Bench(
        settings, terms.suite, rank, terms.found.workload or nothing, terms.store, refused,
        unsearched,
    )  # fmt: skip
