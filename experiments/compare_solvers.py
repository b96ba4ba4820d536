"""Is the exact minimiser of the gap loss a better modification vector than the paper's Adam steps?

uv run experiments/compare_solvers.py --seeds 3

Both solvers merge the same experts, at every η on validation data. Each solver's best η by mean
validation accuracy is then scored on test data, as is the published one; differences are paired by
example and by seed.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from apgd.errors import InputError
from apgd.files import write_json
from apgd.methods import methods
from apgd.statistics import Interval, accuracy, difference
from apgd.suites import suites
from tune.cluster import ray_session
from tune.command import run_command
from tune.evaluators import Purpose, ScoreJob, Workload, mean_score
from tune.experiment import Experiment, check, exclusive, merged_rank, scoring_bytes
from tune.experts import prepare_data, train_experts
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.stages import evaluate, make_workload
from tune.workers import Job, WorkerPool

_METHOD = "doge_ta"
_SOLVERS = ("adam", "exact")


class _Run(Experiment):
    name: ClassVar[str] = "compare_solvers"


@dataclass(frozen=True, kw_only=True)
class SolverComparison:
    """Compare the solvers of DOGE TA on the same experts, with paired intervals."""

    suite: str = "mini_vision"
    """Name of the suite; `apgd suites` lists them."""
    seeds: int = 3
    """Number of seeds, each with its own experts."""
    etas: tuple[float, ...] = (0.04, 0.07, 0.1, 0.15, 0.25)
    """Values of η to try; the published one, 0.07, must be among them."""
    tolerance: float = 1e-4
    """Where the exact solver stops."""
    smoke: bool = False
    """Everything tiny, figures without meaning."""
    run_dir: Path | None = None
    """Folder of this run's results; by default one below runs/."""
    experts_dir: Path = Path("runs/experts")
    """Folder of fine-tuned experts, for all runs."""
    address: str | None = None
    """Ray cluster to join, or local to start one; by default this machine's, or a new one."""
    cpus: int | None = None
    """CPUs to use when Ray is started on this machine; all by default."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if self.published not in self.etas:
            raise InputError(
                f"etas must hold the published {self.published:g}, but got "
                f"{', '.join(f'{eta:g}' for eta in self.etas)}"
            )
        for eta in self.etas:
            methods[_METHOD].parse({"eta": eta, "tolerance": self.tolerance})

    @property
    def published(self) -> float:
        """The published η."""
        return float(methods[_METHOD].params().as_dict()["eta"] or 0)

    @property
    def run(self) -> Experiment:
        """What of it any experiment has."""
        return _Run(
            suite=self.suite, methods=(_METHOD,), seeds=self.seeds, smoke=self.smoke,
            run_dir=self.run_dir, experts_dir=self.experts_dir,
            address=self.address, cpus=self.cpus, debug=self.debug,
        )  # fmt: skip

    def job(self, purpose: Purpose, solver: str, eta: float, seed: int) -> ScoreJob:
        """One merge to be scored."""
        rank, experts = merged_rank(suites[self.suite]), len(suites[self.suite].tasks)
        settings = methods[_METHOD].parse(
            {"solver": solver, "eta": eta, "tolerance": self.tolerance}
        )
        params = tuple(settings.resolved(rank, experts).as_dict().items())
        variant = Variant.PUBLISHED if eta == self.published else Variant.TUNED
        return ScoreJob(purpose, _METHOD, variant, seed, params)


def run(comparison: SolverComparison, console: Console) -> None:
    """Train what is missing, score, compare."""
    experiment = comparison.run
    check(experiment)
    suite = suites[experiment.suite]
    store = RecordStore(experiment.folder)
    with ExitStack() as stack:
        stack.enter_context(exclusive(experiment))
        display = stack.enter_context(Display(console))
        display.say(f"results go to {experiment.folder}")
        cluster = stack.enter_context(
            ray_session(
                address=experiment.address, cpus=experiment.cpus, most_workers=len(suite.tasks)
            )
        )
        display.say(str(cluster))
        pool = WorkerPool(cluster)
        workers = pool.introduce(experiment.folder, scoring_bytes(suite))
        hashes = prepare_data(suite, pool, display)
        experts = train_experts(experiment, suite, hashes, pool, workers, display)
        workload = make_workload(experiment, suite, hashes, experts)
        validation = _validate(comparison, workload, pool, store, display)
        best = {
            solver: max(comparison.etas, key=lambda eta, s=solver: validation[s, eta])
            for solver in _SOLVERS
        }
        wanted = {(s, eta) for s in _SOLVERS for eta in (comparison.published, best[s])}
        jobs = {
            (solver, eta, seed): comparison.job(Purpose.FINAL, solver, eta, seed)
            for solver, eta in sorted(wanted)
            for seed in range(comparison.seeds)
        }
        records = dict(
            zip(jobs, evaluate(list(jobs.values()), workload, pool, store, display), strict=True)
        )
    found = _compare(comparison, best, validation, records, store)
    write_json(experiment.folder / "solvers.json", found)
    _print(found, console)
    console.print(f"written to {experiment.folder / 'solvers.json'}", highlight=False)


def _validate(
    comparison: SolverComparison,
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> dict[tuple[str, float], float]:
    """Mean validation accuracy over seeds, by solver and η."""
    jobs = {
        (solver, eta, seed): comparison.job(Purpose.SEARCH, solver, eta, seed)
        for solver in _SOLVERS
        for eta in comparison.etas
        for seed in range(comparison.seeds)
    }
    missing = [job for job in jobs.values() if store.get(Kind.TRIAL, job.key(workload)) is None]
    with display.stage("validation", len(jobs), len(jobs) - len(missing)) as stage:
        pool.run(
            [Job("score", (workload, job)) for job in missing],
            on_done=lambda _index, _accuracy: stage.advance(),
        )
    tasks = [task.name for task in suites[comparison.suite].tasks]
    means: dict[tuple[str, float], float] = {}
    for (solver, eta, _seed), job in jobs.items():
        record = store.get(Kind.TRIAL, job.key(workload))
        if record is None:
            raise FileNotFoundError(f"the record of trial {job.key(workload)} has disappeared")
        share = mean_score(record, tasks) / comparison.seeds
        means[solver, eta] = means.get((solver, eta), 0.0) + share
    return means


def _compare(
    comparison: SolverComparison,
    best: dict[str, float],
    validation: dict[tuple[str, float], float],
    records: dict[tuple[str, float, int], Record],
    store: RecordStore,
) -> dict[str, object]:
    tasks = [task.name for task in suites[comparison.suite].tasks]

    def runs(solver: str, eta: float) -> list[dict[str, object]]:
        per_seed = []
        for seed in range(comparison.seeds):
            answers = store.answers(records[solver, eta, seed])
            per_seed.append({task: answers[f"test/{task}"] for task in tasks})
        return per_seed

    def seconds(solver: str, eta: float) -> float:
        times = [records[solver, eta, s].seconds["merge"] for s in range(comparison.seeds)]
        return sum(times) / len(times)

    published = comparison.published
    choices = {"published": dict.fromkeys(_SOLVERS, published), "best on validation": best}
    rows = []
    for choice, etas in choices.items():
        ours, theirs = (runs(solver, etas[solver]) for solver in ("exact", "adam"))
        rows.append({
            "choice": choice,
            "eta": etas,
            "test": {"exact": _as_dict(accuracy(ours)), "adam": _as_dict(accuracy(theirs))},
            "exact_minus_adam": _as_dict(difference(ours, theirs)),
            "merge_seconds": {s: seconds(s, etas[s]) for s in _SOLVERS},
        })  # fmt: skip
    return {
        "suite": comparison.suite,
        "seeds": comparison.seeds,
        "tolerance": comparison.tolerance,
        "validation": [
            {"eta": eta, **{s: validation[s, eta] for s in _SOLVERS}} for eta in comparison.etas
        ],
        "rows": rows,
    }


def _as_dict(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _print(found: dict, console: Console) -> None:  # type: ignore[type-arg]
    console.print("\nvalidation accuracy (%), mean over seeds")
    table = Table("η", *_SOLVERS, box=None)
    for row in found["validation"]:
        table.add_row(f"{row['eta']:g}", *(f"{100 * row[s]:.1f}" for s in _SOLVERS))
    console.print(table)
    titles = ("η", "η exact", "η Adam", "exact", "Adam", "exact − Adam")
    console.print("\ntest accuracy (%), difference with its 95 % interval")
    table = Table(*titles, box=None)
    for row in found["rows"]:
        table.add_row(
            row["choice"],
            *(f"{row['eta'][s]:g}" for s in ("exact", "adam")),
            *(f"{100 * row['test'][s]['estimate']:.1f}" for s in ("exact", "adam")),
            "{estimate:+.1f} [{low:.1f}, {high:.1f}]".format(
                **{name: 100 * value for name, value in row["exact_minus_adam"].items()}
            ),
        )
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        SolverComparison, run, prog="experiments/compare_solvers.py", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
