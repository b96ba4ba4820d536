"""Trials per hour of DOGE TA's search beside those of a naive one, and where the time goes.

uv run experiments/benchmark_search.py                   all of it, about 10 minutes
uv run experiments/benchmark_search.py --smoke           the same with tiny counts

In one run, on the same cores and experts of mini_vision: a naive loop with Ray Tune (naive_search),
then the search as it is used, with everything judged that it would leave out, and with one worker.
What it asks of its driver is in benchmark_driver.py, how it spreads over nodes in
benchmark_scale.py.
"""

import tune  # isort: skip  # noqa: F401 - sets what Ray reads when it is imported

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import ray
import torch
from rich.console import Console
from rich.table import Table

from apgd import InputError, __version__
from apgd.data import Split
from apgd.files import write_json
from apgd.machine import name_of
from apgd.suites import Suite
from experiments.naive_search import ENGINES, Given, run_naively
from experiments.search_rates import (
    PROCESSES,
    CpuMeter,
    rung_counts,
    steady_rate,
    within,
)
from experiments.timed_search import Measured, TimedSampling
from tune.cluster import ray_session
from tune.evaluators import Workload
from tune.experiment import Experiment, check, merged_rank
from tune.experts import prepare_data, train_experts
from tune.progress import Display
from tune.records import RecordStore
from tune.search.rungs import RungResult, Rungs
from tune.search.sampling import Outcome
from tune.search.stage import bases_bytes, shared_bases, study_key, trial_record
from tune.search.storage import open_storage
from tune.search.studies import Study
from tune.search.trials import Trial, rungs_done
from tune.search.tuner import run_searches
from tune.stages import make_workload
from tune.workers.pool import WorkerPool
from tune.workers.process import Shared

_MANY = 1_000_000
_IN_FULL = Rungs(shares=(1.0, 1.0, 1.0), narrowing=1, reduction=1)
"""Every setting is judged on all validation examples, and nothing is stopped."""
_USED_LABEL, _IN_FULL_LABEL, _ALONE_LABEL = "as used", "like for like", "1 worker"
_TARGETS = {"speed-up": 20.0, "computing": 0.7, "overhead": 0.05, "scaling": 0.85}


@dataclass(frozen=True, kw_only=True)
class SearchBenchmark(Experiment):
    """Search DOGE TA, with an eye on the clock."""

    name: ClassVar[str] = "benchmark_search"
    corruptions: ClassVar[bool] = False

    methods: tuple[str, ...] = ("doge_ta",)
    """The method that is searched."""


@dataclass(frozen=True)
class Setting:
    """What all measurements have in common."""

    suite: Suite
    base: SearchBenchmark
    """The experiment, of which each measurement has a run folder of its own."""
    folder: Path
    hashes: Mapping[tuple[str, str], str]
    experts: Mapping[tuple[int, str], Any]
    display: Display
    seconds: float | None
    """How long each search is measured; None where it ends by its trials."""
    trials: int

    def experiment(self, label: str) -> SearchBenchmark:
        """The experiment of one measurement; nothing that another has done is found there."""
        made = replace(self.base, run_dir=self.folder / label)
        check(made)
        return made

    def study(self, rungs: Rungs, at_once: int) -> Study:
        """The search of DOGE TA at the first seed."""
        published = tuple(self.base.settings_of(self.suite, "doge_ta").items())
        trials = self.trials if self.seconds is None else _MANY
        return Study(
            "doge_ta", 0, trials, merged_rank(self.suite), len(self.suite.tasks), published,
            rungs=rungs, at_once=at_once,
        )  # fmt: skip

    def examples_at(self, share: float) -> int:
        """Validation examples of all tasks at a share."""
        found = [self.suite.examples(task.name, Split.VALIDATION) for task in self.suite.tasks]
        limit = self.base.limit
        cut = found if limit is None else [of.first(limit) for of in found]
        return sum(len(of.part(share)) for of in cut)


def main() -> None:
    """Measure, print, write."""
    options = _options()
    console = Console(width=118)
    with ExitStack() as stack:
        folder = options.run_dir or Path(stack.enter_context(TemporaryDirectory()))
        display = stack.enter_context(Display(console))
        report = _measure_all(options, folder, display)
        _print(report, console)
    if options.out is not None:
        write_json(options.out, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cpus = os.cpu_count() or 1
    parser.add_argument("--minutes", type=float, default=2.0, help="length of each search (2)")
    parser.add_argument("--trials", type=int, help="trials of each search, in place of --minutes")
    parser.add_argument("--cpus", type=int, default=cpus, help=f"workers, naive trials ({cpus})")
    parser.add_argument("--naive-engine", nargs="*", choices=ENGINES, default=list(ENGINES),
                        help="who merges in the naive loop: torch's SVD and autograd, or "
                        "apgd.merge (both)")  # fmt: skip
    parser.add_argument("--naive-trials", type=int,
                        help="of each engine; three per core if not given")  # fmt: skip
    parser.add_argument("--without", nargs="*", default=[], choices=[_IN_FULL_LABEL, _ALONE_LABEL],
                        help="searches to leave out")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the search's forward pass")
    parser.add_argument("--experts-dir", type=Path, default=Path("runs/experts"))
    parser.add_argument("--run-dir", type=Path, help="new folder; temporary if not given")
    parser.add_argument("--smoke", action="store_true", help="tiny: figures without meaning")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    for name in ("minutes", "trials", "cpus"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be positive, but got {value}")
    if options.smoke:
        options.minutes = min(options.minutes, 0.1)
        options.naive_trials = options.naive_trials or 2 * options.cpus
    where = options.run_dir
    if where is not None and where.exists() and any(where.iterdir()):
        parser.error(f"--run-dir must be new or empty, but {where} is not")
    options.naive_trials = options.naive_trials or 3 * options.cpus
    if options.naive_trials < 2 * options.cpus:
        parser.error(
            f"--naive-trials must be at least two a core, {2 * options.cpus}, but got "
            f"{options.naive_trials}"
        )
    return options


def _measure_all(options: argparse.Namespace, folder: Path, display: Display) -> dict[str, Any]:
    setting = _prepared(options, folder, display)
    naive = {engine: _naive(setting, engine, options) for engine in options.naive_engine}
    cpus = options.cpus
    wanted = {
        _USED_LABEL: (Rungs(), cpus), _IN_FULL_LABEL: (_IN_FULL, cpus), _ALONE_LABEL: (Rungs(), 1),
    }  # fmt: skip
    if cpus == 1:
        del wanted[_ALONE_LABEL]
    searches = {
        label: _search(setting, label, rungs, workers)
        for label, (rungs, workers) in wanted.items()
        if label not in options.without
    }
    return {
        "machine": name_of(torch.device("cpu")), "cpus": cpus, "smoke": options.smoke,
        "torch": torch.__version__, "ray": ray.__version__, "apgd": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "validation_examples": setting.examples_at(1.0),
        "naive": naive,
        "compiled": options.compile,
        "searches": [measured.as_json() for measured in searches.values()],
    }  # fmt: skip


def _prepared(options: argparse.Namespace, folder: Path, display: Display) -> Setting:
    base = SearchBenchmark(
        smoke=options.smoke,
        experts_dir=options.experts_dir,
        run_dir=folder / "preparation",
        compile=options.compile,
    )
    check(base)
    suite = base.full_suite
    with ray_session(address="local", cpus=options.cpus) as cluster:
        pool = WorkerPool(cluster, display.say, base.folder)
        hashes = prepare_data(suite, pool, display, corrupted=False)
        experts = train_experts(base, suite, hashes, pool, display)
    seconds = 60 * options.minutes if options.trials is None else None
    return Setting(suite, base, folder, hashes, experts, display, seconds, options.trials or 0)


def _naive(setting: Setting, engine: str, options: argparse.Namespace) -> dict[str, Any]:
    study = setting.study(Rungs(), 1)
    given = Given(
        suite=setting.suite.name,
        experts=tuple((task, str(of.weights)) for (_, task), of in setting.experts.items()),
        engine=engine,
        limit=setting.base.limit,
    )
    published = study.published.as_dict()
    scratch = setting.folder / f"naive-{engine}"
    with (
        setting.display.stage(f"naive, {engine}", options.naive_trials) as stage,
        ray_session(address="local", cpus=options.cpus),
    ):
        found = run_naively(given, published, study.rank, options.naive_trials, scratch)
        stage.advance(options.naive_trials)
    rate = steady_rate(found.ended, options.cpus)
    inside = sum(found.seconds.values())
    return {
        "trials": options.naive_trials, "per_hour": 3600 * rate,
        "images_per_hour": 3600 * rate * setting.examples_at(1.0), "best": found.best,
        # The rest of a slot's time goes to the start of a process and to Tune.
        "seconds": {"start": options.cpus / rate - inside, **found.seconds},
    }  # fmt: skip


def _search(setting: Setting, label: str, rungs: Rungs, cpus: int) -> Measured:
    """Search for real."""
    experiment = setting.experiment(label.replace(" ", "_"))
    workload = make_workload(experiment, setting.suite, setting.hashes, setting.experts)
    study = setting.study(rungs, experiment.at_once)
    shared = bases_bytes([study], setting.suite)
    with (
        ray_session(address="local", cpus=cpus, shared_bytes=shared) as cluster,
        CpuMeter(PROCESSES) as meter,
    ):
        pool = WorkerPool(cluster, setting.display.say, experiment.folder)
        pool.start()
        started = time.perf_counter()
        bases = shared_bases([study], setting.suite, workload, pool, setting.display)
        handles = pool.handles
        return _measured(
            setting, experiment, study, workload, handles, bases, meter, label, started
        )


def _measured(
    setting: Setting,
    experiment: Experiment,
    study: Study,
    workload: Workload,
    handles: Sequence[Any],
    bases: Mapping[int, Any],
    meter: CpuMeter,
    label: str,
    started: float,
) -> Measured:
    """Run a study as `tune.search.stage` does, with its files and its database."""
    store = RecordStore(experiment.folder)
    key = study_key(study, workload)
    sampling = TimedSampling(
        study, f"benchmark/{key}", open_storage(experiment), len(handles), setting.seconds
    )
    done: list[list[RungResult]] = []

    def on_finish(_index: int, number: int, outcome: Outcome) -> Mapping[str, Any]:
        stage.advance()
        trial = Trial(study, key, number, tuple(sampling.params(number).items()))
        record = trial_record(trial, outcome, workload)
        if outcome.error is not None:
            raise RuntimeError(f"trial {number} of {label} failed: {outcome.error}")
        store.add(record)
        return {"record": record.key}

    shared = Shared(studies=(study,), keys=(key,), workload=workload, bases=dict(bases))
    scratch = experiment.folder / "tune"
    with setting.display.stage(label, min(study.trials, 1000)) as stage:
        run_searches([sampling], shared, handles, scratch, on_finish, setting.display.say)
    for number in range(sampling.suggested):
        trial = Trial(study, key, number, tuple(sampling.params(number).items()))
        done.append(rungs_done(trial, workload.run_dir))
    begin, end = sampling.begin, sampling.end
    if end <= begin:
        raise InputError(
            f"a search must go on for longer than its first rungs, but {label} did not; give it "
            f"more --minutes or --trials"
        )
    of_rungs = [rung_counts(rungs, setting.examples_at) for rungs in done]
    events = [(at, of_rungs[number][rung]) for at, number, rung in sampling.reported]
    full = [rung.values[0] for rungs in done for rung in rungs if rung.share == 1]
    return Measured(
        label=label,
        workers=len(handles),
        seconds=end - begin,
        warm_up=begin - started,
        counts=within(events, begin, end),
        best=max(full, default=None),
        cpu=meter.between(begin, end),
        processes=meter.started("trials", begin, end),
        rungs=done,
    )


def _print(report: Mapping[str, Any], console: Console) -> None:
    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False)

    say(f"\n{report['machine']}; DOGE TA on mini_vision, {report['validation_examples']} "
        f"validation images, {report['cpus']} cores; rates per hour")  # fmt: skip
    say()
    rates = Table("", "settings", "on all data", "Tune trials", "images", "best", box=None)
    for column in rates.columns[1:]:
        column.justify = "right"
    for engine, naive in report["naive"].items():
        count = f"{naive['per_hour']:,.0f}"
        rates.add_row(f"naive loop, {engine}", count, count, count,
                      f"{naive['images_per_hour']:,.0f}", f"{100 * naive['best']:.1f}")  # fmt: skip
    for found in report["searches"]:
        hourly = found["per_hour"]
        cells = [hourly[name] for name in ("settings", "settings_in_full", "trials", "images")]
        rates.add_row(f"search {found['label']}", *(f"{cell:,.0f}" for cell in cells),
                      _percent(found["best"]))  # fmt: skip
    console.print(rates)
    say(
        "Settings: sets of all five parameters that got a score, which is what a naive trial is.\n"
        "On all data: those that got one on all validation images; as used, a search gives most\n"
        "of its settings one on a ninth or a third of them, and drops those that fall behind.\n"
        "Like for like: it gives every setting one on all of them. Best: validation accuracy, %."
    )
    if report["naive"]:
        say("\nSeconds of a naive trial: " + "; ".join(
            f"{engine}: " + ", ".join(f"{step} {s:.1f}" for step, s in naive["seconds"].items())
            for engine, naive in report["naive"].items()
        ))  # fmt: skip
    say("\nWhere the time of workers goes, and processor seconds for each Tune trial")
    times = Table("", "merge", "forward", "other", "a trial", "a setting", "driver", "Tune's",
                  "Ray's", "workers'", "begins after", box=None)  # fmt: skip
    for found in report["searches"]:
        split, cpu = (
            found["time"],
            {k: v / found["counts"]["trials"] for k, v in found["cpu"].items()},
        )
        spent = [f"{1000 * cpu[k]:.0f} ms" for k in ("driver", "trials", "ray", "workers")]
        times.add_row(
            found["label"], *(f"{100 * split[k]:.0f} %" for k in ("merge", "score", "other")),
            *(f"{1000 * split[k]:.1f} ms" for k in ("per_trial", "per_setting")),
            *spent, f"{found['warm_up']:.0f} s",
        )  # fmt: skip
    console.print(times)
    say("A trial, a setting: the part `other` for each.\n")
    goals = Table("", "reached", "to reach", "", box=None)
    for goal in targets(report):
        verdict = "met" if goal["met"] else "not met"
        goals.add_row(goal["what"], f"{goal['value']:.2f}", goal["wanted"], verdict)
    console.print(goals)
    if report["smoke"]:
        say("A smoke run: figures without meaning.")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def targets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and whether it was.

    Args:
        report: what `main` writes.
    """
    searches = {found["label"]: found for found in report["searches"]}
    used = searches[_USED_LABEL]
    many = [found for label, found in searches.items() if label != _ALONE_LABEL]
    found = []

    def at_least(what: str, value: float, target: str) -> None:
        wanted = _TARGETS[target]
        found.append({"what": what, "value": value, "wanted": f">= {wanted:g}",
                      "met": value >= wanted})  # fmt: skip

    for engine, naive in report["naive"].items():
        for search in many:
            ratio = search["per_hour"]["settings"] / naive["per_hour"]
            at_least(f"settings {search['label']}, times naive ({engine})", ratio, "speed-up")
        ratio = used["per_hour"]["settings_in_full"] / naive["per_hour"]
        at_least(f"of these on all data as used, times naive ({engine})", ratio, "speed-up")
    for search in many:
        share = search["time"]["merge"] + search["time"]["score"]
        at_least(f"merge and forward {search['label']}, of workers' time", share, "computing")
        over = search["time"]["per_trial"]
        wanted = _TARGETS["overhead"]
        found.append({"what": f"overhead of a trial {search['label']}, seconds", "value": over,
                      "wanted": f"<= {wanted:g}", "met": over <= wanted})  # fmt: skip
    if _ALONE_LABEL in searches:
        growth = efficiency(searches[_ALONE_LABEL], used)
        at_least(f"1 to {used['workers']} workers, of linear", growth, "scaling")
    return found


def efficiency(few: Mapping[str, Any], many: Mapping[str, Any]) -> float:
    """How much of a linear growth of settings per hour more workers bring."""
    growth = many["per_hour"]["settings"] / few["per_hour"]["settings"]
    return float(growth / (many["workers"] / few["workers"]))


if __name__ == "__main__":
    main()
