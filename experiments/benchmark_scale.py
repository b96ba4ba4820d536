"""How a run spreads over nodes: makespan beside the shortest there can be, on 1, 2, 4, 8 nodes.

uv run experiments/benchmark_scale.py                                  all of it, about 6 minutes
uv run experiments/benchmark_scale.py --nodes 1 2 --cases mini_vision  a part
uv run experiments/benchmark_scale.py --record RUN EXPERTS             durations from a real run

Nodes are simulated on this machine, with one worker each that sleeps as long as a job took: in a
real run of mini_vision (recorded_durations.json), or for ViT-B/32 on L4 GPUs, where nothing is
measured, as calculated by `--plan`. Everything else is real: worker pools and their dispatch, the
search with Tune and Optuna, its database. Durations are scaled down so that this takes minutes;
what scheduling costs is not, so that in a real run it weighs less.

The shortest there can be is a lower bound for indivisible jobs, stage after stage
(tune.planning.schedule.lower_bound), over the times that workers in fact slept.
"""

import tune  # isort: skip  # noqa: F401 - sets what Ray reads when it is imported

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import ray
import torch
from rich.console import Console
from rich.table import Table

from apgd.files import write_json
from apgd.machine import name_of
from experiments.reproductions import RECORDED, Case, case_of, recorded
from experiments.simulated_nodes import simulated_nodes
from experiments.sleeping_worker import Naps, SleepingWorker, score
from tune.cluster import Cluster, ray_session
from tune.experiment import Experiment
from tune.planning.schedule import divisible_bound, in_turn, lower_bound
from tune.records import Kind, Record, RecordStore, Variant
from tune.search.sampling import Outcome, Sampling, distribution
from tune.search.stage import studies_of
from tune.search.studies import Study
from tune.search.tuner import run_searches
from tune.workers.pool import Job, WorkerPool

_NODES = (1, 2, 4, 8)
_TARGET = 0.85
_SECONDS = {"mini_vision": 50.0, "clip_vit_b32_8": 20.0, "clip_vit_b32_20": 20.0}
"""Work of a whole reproduction, scaled to so many seconds of one worker."""
_TRIALS = 10_000
_PER_NODE = 20
"""Trials of the long search that are replayed for each node."""
_LONG_SCALE = 0.4
"""Their durations, times so much."""


@dataclass(frozen=True)
class Stage:
    """One stage that was replayed."""

    name: str
    jobs: int
    makespan: float
    """Seconds."""
    bound: float
    """The least that the jobs can take on these workers."""
    divisible: float
    """The least if they could be cut at will."""
    listed: float
    """What they take where each worker that is free has the next one at once."""
    scale: float = 1.0
    """Durations are so many times the recorded ones."""

    @property
    def cost(self) -> float:
        """Seconds that scheduling took: start-up, messages, suggestions, files."""
        return max(0.0, self.makespan - self.listed)

    @property
    def unscaled(self) -> float:
        """Seconds with durations as recorded: what scheduling costs stays as it is."""
        return self.listed / self.scale + self.cost


def main() -> None:
    """Record, or replay, print, write."""
    options = _options()
    if options.record is not None:
        write_json(RECORDED, recorded(*options.record))
        return
    console = Console(width=100)
    cases = {name: case_of(name) for name in options.cases}
    report: dict[str, Any] = {
        "machine": name_of(torch.device("cpu")),
        "ray": ray.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cases": {},
    }
    for name, case in cases.items():
        report["cases"][name] = {"source": case.source, "work_seconds": case.work, "nodes": {}}
    long = None
    if options.trials:
        replayed = _PER_NODE * sum(options.nodes)
        long = LongSearch(options.trials, replayed, _LONG_SCALE * options.scale)
        report["cases"]["search"] = {"trials": options.trials, "replayed": replayed, "nodes": {}}
    for count in options.nodes:
        with (
            simulated_nodes(count, cpus=1, gpus=1) as address,
            ray_session(address=address) as cluster,
            TemporaryDirectory() as folder,
        ):
            for name, case in cases.items():
                stages = replay(case, options.scale * _SECONDS[name] / case.work, cluster,
                                Path(folder) / name)  # fmt: skip
                report["cases"][name]["nodes"][count] = [asdict(stage) for stage in stages]
                _say(console, name, count, stages)
            if long is not None:
                stages = [long.go_on(_PER_NODE * count, cluster, Path(folder))]
                report["cases"]["search"]["nodes"][count] = [asdict(stage) for stage in stages]
                _say(console, "search", count, stages)
    _print(report, console)
    if options.out is not None:
        write_json(options.out, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=list(_NODES), help="(1 2 4 8)")
    parser.add_argument("--cases", nargs="*", choices=list(_SECONDS), default=list(_SECONDS),
                        help="reproductions to replay (all)")  # fmt: skip
    parser.add_argument("--trials", type=int, default=_TRIALS,
                        help="of the long search, of which the last are replayed; 0 leaves it "
                        "out (10000)")  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="durations, times so much (1)")
    parser.add_argument("--record", type=Path, nargs=2, metavar=("RUN", "EXPERTS"),
                        help="only write durations of a real run of mini_vision: its folder, and "
                        "that of its experts")  # fmt: skip
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if min(options.nodes) < 1:
        parser.error(f"--nodes must be at least 1, but got {min(options.nodes)}")
    return options


def replay(case: Case, scale: float, cluster: Cluster, folder: Path) -> list[Stage]:
    """A reproduction, stage after stage, on workers that sleep so many times as long."""
    case = case.scaled(scale)
    pool = WorkerPool(cluster, _nobody, actor=SleepingWorker)
    try:
        ray.get([worker.sleep.remote(0.0) for worker in pool.handles])
        stages = [_jobs(name, seconds, pool) for name, seconds in case.before]
        if case.studies:
            stages.append(_search(case.studies, case.naps, pool, folder))
        stages += [_jobs(name, seconds, pool) for name, seconds in case.after]
        return [replace(stage, scale=scale) for stage in stages]
    finally:
        pool.close()


def _nobody(_sentence: str) -> None:
    """What is said of workers, who do not die here."""


def _jobs(name: str, seconds: Sequence[float], pool: WorkerPool) -> Stage:
    started = time.perf_counter()
    pool.run([Job("sleep", (one,), name) for one in seconds])
    return _stage(name, time.perf_counter() - started, seconds, len(pool.handles))


def _stage(name: str, makespan: float, seconds: Sequence[float], workers: int) -> Stage:
    return Stage(
        name, len(seconds), makespan, lower_bound(seconds, workers),
        divisible_bound(seconds, workers), in_turn(seconds, workers).makespan,
    )  # fmt: skip


def _search(studies: Sequence[Study], naps: Naps, pool: WorkerPool, folder: Path) -> Stage:
    """Studies in the real search, with its database."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'studies.db'}")
    named = enumerate(studies)
    samplings = [Sampling(study, f"{index}/{study.name}", storage) for index, study in named]
    return _searched(samplings, naps, pool, folder)


def _searched(samplings: Sequence[Sampling], naps: Naps, pool: WorkerPool, folder: Path) -> Stage:
    """The real search, with a record of every trial."""
    store = RecordStore(folder)
    slept: dict[tuple[int, int], float] = {}

    def on_finish(index: int, number: int, outcome: Outcome) -> Mapping[str, Any]:
        if outcome.error is not None:
            raise RuntimeError(f"trial {number} of study {index} failed: {outcome.error}")
        seconds = sum(naps.seconds(index, number, rung) for rung in range(len(outcome.rungs)))
        slept[number, index] = seconds
        study = samplings[index].study
        record = Record(
            kind=Kind.TRIAL, method=study.method, variant=Variant.TUNED, seed=study.seed,
            params=samplings[index].params(number), inputs={"trial": f"{index}#{number}"},
            scores={}, seconds={"score": seconds},
        )  # fmt: skip
        store.add(record)
        return {"record": record.key}

    started = time.perf_counter()
    run_searches(samplings, naps, pool.handles, folder / "tune", on_finish)
    makespan = time.perf_counter() - started
    # Studies have their turns, and each hands out its trials by number.
    return _stage("search", makespan, [slept[at] for at in sorted(slept)], len(pool.handles))


class LongSearch:
    """The end of one long search of DOGE TA, where suggestions know the most trials.

    Each call of `go_on` replays the next trials of it. Those before are made up, and are in memory
    instead of a database.

    Args:
        trials: of the whole search.
        replayed: the last so many of them are replayed.
        scale: durations, times so much.
    """

    def __init__(self, trials: int, replayed: int, scale: float) -> None:
        found = json.loads(RECORDED.read_text(encoding="utf-8"))
        naps = tuple(tuple(scale * s for s in rungs) for rungs in found["trials"]["doge_ta"])
        self._naps, self._scale = Naps((naps,)), scale
        experiment = Experiment(suite="mini_vision", methods=("doge_ta",), trials=trials)
        [study] = studies_of(experiment, experiment.full_suite)
        storage = optuna.storages.InMemoryStorage()
        before = optuna.create_study(storage=storage, study_name="long", direction="maximize")
        before.add_trials(_made_up(study, max(0, trials - replayed)))
        self._sampling = Sampling(study, "long", storage)

    def go_on(self, trials: int, cluster: Cluster, folder: Path) -> Stage:
        """Replay the next trials.

        Args:
            trials: how many.
            cluster: where. A study that lets too few trials run at once cannot keep many busy.
            folder: for records.
        """
        sampling = self._sampling
        sampling.study = replace(
            sampling.study, trials=sampling.suggested + trials, at_once=max(8, 4 * cluster.workers)
        )
        pool = WorkerPool(cluster, _nobody, actor=SleepingWorker)
        try:
            ray.get([worker.sleep.remote(0.0) for worker in pool.handles])
            found = _searched([sampling], self._naps, pool, folder / "search")
            return replace(found, scale=self._scale)
        finally:
            pool.close()


def _made_up(study: Study, count: int) -> list[optuna.trial.FrozenTrial]:
    """Finished trials of a study at random places."""
    rng = np.random.default_rng(0)
    distributions = {d.name: distribution(d.kind, low, high, d.log) for d, low, high in study.space}
    made = []
    for _number in range(count):
        params: dict[str, Any] = {}
        for declared, low, high in study.space:
            ends = np.log([low, high]) if declared.log else np.array([low, high])
            drawn = rng.uniform(*ends)
            value = float(np.clip(np.exp(drawn) if declared.log else drawn, low, high))
            params[declared.name] = round(value) if declared.kind is int else value
        values = [score(params)]
        attributes = {"rungs": [values] * len(study.rungs), "record": "made up"}
        made.append(
            optuna.trial.create_trial(
                params=params, distributions=distributions, values=values, user_attrs=attributes
            )
        )
    return made


def ratio(stages: Sequence[Stage], *, divisible: bool = False) -> float:
    """The shortest there can be over what it took; 1 is perfect.

    Args:
        stages: one after the other.
        divisible: beside work that could be cut at will.
    """
    ideal = sum(stage.divisible if divisible else stage.bound for stage in stages)
    return ideal / sum(stage.makespan for stage in stages)


def unscaled_ratio(stages: Sequence[Stage]) -> float:
    """The same for durations as recorded, see `Stage.unscaled`."""
    ideal = sum(stage.bound / stage.scale for stage in stages)
    return ideal / sum(stage.unscaled for stage in stages)


def _say(console: Console, name: str, nodes: int, stages: Sequence[Stage]) -> None:
    console.print(
        f"{name}, {nodes} nodes: {sum(s.makespan for s in stages):.1f} s, {ratio(stages):.2f}; "
        f"at full length {unscaled_ratio(stages):.2f}",
        highlight=False,
    )


def _print(report: Mapping[str, Any], console: Console) -> None:
    table = Table("", "nodes", "stage", "jobs", "took", "at least", "costs", "ratio", "divisible",
                  "at full length", box=None)  # fmt: skip
    for column in table.columns[3:]:
        column.justify = "right"
    for name, case in report["cases"].items():
        for nodes, found in case["nodes"].items():
            stages = [Stage(**values) for values in found]
            named = [(stage.name, [stage]) for stage in stages]
            for row, (label, of) in enumerate(
                named if len(named) == 1 else [*named, ("all", stages)]
            ):
                first = (name, str(nodes)) if row == 0 else ("", "")
                table.add_row(
                    *first, label, str(sum(s.jobs for s in of)),
                    *(f"{sum(getattr(s, k) for s in of):.2f} s"
                      for k in ("makespan", "bound", "cost")),
                    f"{ratio(of):.2f}", f"{ratio(of, divisible=True):.2f}",
                    f"{unscaled_ratio(of):.2f}",
                )  # fmt: skip
    console.print(table)
    for name, case in report["cases"].items():
        if "source" in case:
            console.print(f"{name}: {case['source']}; {case['work_seconds']:.0f} s of work before "
                          f"scaling", highlight=False)  # fmt: skip
    worst = min(
        (unscaled_ratio([Stage(**values) for values in found]), name, nodes)
        for name, case in report["cases"].items()
        for nodes, found in case["nodes"].items()
    )
    verdict = "met" if worst[0] >= _TARGET else "not met"
    console.print(
        "Costs: what it took beyond handing each job at once to whoever is free. At full length: "
        "with\ndurations as recorded, and costs in seconds as they were here.",
        highlight=False,
    )
    console.print(
        f"target {_TARGET} at full length: {verdict}; the least is {worst[0]:.2f} "
        f"({worst[1]}, {worst[2]} nodes)",
        highlight=False,
    )


if __name__ == "__main__":
    main()
