"""What a search asks of its driver: processor time of every trial, by what it goes to.

uv run experiments/benchmark_driver.py                   300 to 10,000 trials, about 10 minutes
uv run experiments/benchmark_driver.py --trials 1000     one of these

Workers answer at once, so that all the time is the search's own, and the driver's is what bounds
how many trials a cluster can do in a second. Everything but the workers is real: Tune and its
processes, suggestions, records, the study's database.
"""

import tune  # isort: skip  # noqa: F401 - sets what Ray reads when it is imported

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import ray
import torch
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from apgd.files import write_json
from apgd.machine import name_of
from experiments.search_rates import PROCESSES, CpuMeter
from tune.cluster import ray_session
from tune.evaluators import Workload
from tune.records import Kind, RecordStore
from tune.search.rungs import Judged, RungResult, Rungs
from tune.search.sampling import Outcome, Sampling
from tune.search.seen import MOST
from tune.search.stage import trial_record
from tune.search.studies import Params, Study
from tune.search.trials import Trial, rungs_done, write_rungs
from tune.search.tuner import run_searches
from tune.tracking import MlflowCopy
from tune.workers.process import Shared

_TRACKED = 50  # records that are sent to MLflow to see what one takes
_TARGET = 5.0  # milliseconds of the driver for each trial


class Meter:
    """Processor seconds of this thread by part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block's time goes to a part."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] += time.thread_time() - began  # type: ignore[assignment]


class MeteredSampling(Sampling):
    """Sampling that is measured."""

    meter: Meter

    def suggest(self) -> tuple[int, Params] | None:
        """See `Sampling`."""
        with self.meter.part("sampling"):
            return super().suggest()

    def finish(self, number: int, outcome: Outcome, notes: Mapping[str, Any]) -> None:
        """See `Sampling`."""
        with self.meter.part("storage"):
            super().finish(number, outcome, notes)

    def write(self) -> None:
        """See `Sampling`."""
        with self.meter.part("storage"):
            super().write()


class AnsweringWorker:
    """Takes the place of a worker: it answers at once, with rungs that it was given.

    Args:
        made_up: of some trials, the rungs.
    """

    def __init__(self, made_up: Sequence[Sequence[RungResult]]) -> None:
        self._made_up = made_up

    def score_trial(
        self, shared: Shared, study: int, number: int, params: Params, rung: int
    ) -> tuple[float, ...]:
        """As `tune.workers.process.Worker.score_trial`, down to the file of the rung."""
        trial = Trial(shared.studies[study], shared.keys[study], number, tuple(params.items()))
        run_dir = shared.workload.run_dir
        result = self._made_up[number % len(self._made_up)][rung]
        write_rungs(trial, run_dir, [*rungs_done(trial, run_dir), result])
        return result.values


def main() -> None:
    """Measure, print, write."""
    options = _options()
    console = Console(width=118)
    loads = []
    with TemporaryDirectory() as folder:
        for trials in options.trials:
            for studies in options.studies:
                with console.status(f"{trials:,} trials in {studies} studies"):
                    place = Path(folder) / f"{trials}-{studies}"
                    loads.append(measure_load(trials, studies, options.workers, place))
    _print(loads, console)
    if options.out is not None:
        write_json(options.out, {
            "machine": name_of(torch.device("cpu")), "ray": ray.__version__,
            "optuna": optuna.__version__, "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "loads": loads,
        })  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[300, 1000, 3000, 10_000],
                        help="of a search (300 1000 3000 10000)")  # fmt: skip
    parser.add_argument("--studies", type=int, nargs="+", default=[1, 20],
                        help="into how many studies each is divided (1 20)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=4, help="who answer at once (4)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.workers < 1 or min(options.studies) < 1:
        least = min(options.workers, *options.studies)
        parser.error(f"--workers and --studies must be at least 1, but got {least}")
    if min(options.trials) < max(options.studies):
        parser.error(
            f"--trials must be at least one for each study, {max(options.studies)}, but got "
            f"{min(options.trials)}"
        )
    return options


def made_up_rungs(count: int = 97) -> list[list[RungResult]]:
    """Rungs of so many trials of DOGE TA, with as many settings as in a real search."""
    shares, settings = Rungs().shares, (7, 4, 2)
    return [
        [
            RungResult(
                share=share,
                judged=tuple(
                    Judged(
                        setting={"iterations": 50 * 2**rung, "keep_ratio": (i + 1) / 10},
                        values=(0.5 + 0.001 * (31 * number % count) + 0.02 * rung - 0.01 * i,),
                    )
                    for i in range(settings[rung])
                ),
                best=0,
                scores={f"validation/task{task}": 0.5 + 0.001 * number for task in range(8)},
                seconds={"merge": 0.0, "score": 0.0},
                reads={"validation": settings[rung]},
            )
            for rung, share in enumerate(shares)
        ]
        for number in range(count)
    ]


def measure_load(trials: int, studies: int, workers: int, folder: Path) -> dict[str, Any]:
    """Search with workers that answer at once; milliseconds of every trial and counts.

    Args:
        trials: of all studies together.
        studies: of DOGE TA, each with as many trials.
        workers: how many.
        folder: a new one.
    """
    write_json(folder / "experiment.json", {"identity": {}, "run_id": "load"})
    each = trials // studies
    all_studies = tuple(Study("doge_ta", seed, each, 128, 8) for seed in range(studies))
    keys = tuple(f"load{seed}" for seed in range(studies))
    inputs = tuple((seed, (("data", "made up"),)) for seed in range(studies))
    workload = Workload(
        "mini_vision", folder, tuple((s, ()) for s in range(studies)), inputs, None, 0
    )
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'studies.db'}")
    store, meter, transactions = RecordStore(folder), Meter(), list[float]()
    samplings = []
    for study in all_studies:
        samplings.append(MeteredSampling(study, study.name, storage))
        samplings[-1].meter = meter
    event.listen(storage.engine, "commit", lambda _connection: transactions.append(time.time()))

    def on_finish(index: int, number: int, outcome: Outcome) -> dict[str, Any]:
        with meter.part("records"):
            params = tuple(samplings[index].params(number).items())
            trial = Trial(all_studies[index], keys[index], number, params)
            record = trial_record(trial, outcome, workload)
            store.add(record)
        return {"record": record.key, "scores": dict(record.scores)}

    with ray_session(address="local", cpus=workers), CpuMeter(PROCESSES) as processes:
        remote: Any = ray.remote(num_cpus=1)(AnsweringWorker)
        made_up = ray.put(made_up_rungs())
        handles = [remote.remote(made_up) for _ in range(workers)]
        wall, driver = time.perf_counter(), time.process_time()
        shared = Shared(all_studies, keys, workload, {})
        run_searches(samplings, shared, handles, folder / "tune", on_finish)
        driver = time.process_time() - driver
        began, wall = wall, time.perf_counter() - wall
        others = processes.between(began, began + wall)
    count = each * studies
    parts = {name: 1000 * seconds / count for name, seconds in meter.seconds.items()}
    parts["tune"] = 1000 * driver / count - sum(parts.values())
    return {
        "trials": count, "studies": studies, "workers": workers,
        "driver": 1000 * driver / count, "parts": parts, "wall": 1000 * wall / count,
        "processes": 1000 * others["trials"] / count,
        "tracking": _tracking(store, folder), "transactions": len(transactions), "seen": MOST,
    }  # fmt: skip


def _tracking(store: RecordStore, folder: Path) -> float:
    """Milliseconds of processor that a record takes on its way to MLflow."""
    some = folder / "tracked"
    write_json(some / "experiment.json", {"identity": {}, "run_id": "tracked"})
    few = RecordStore(some)
    keys = store.keys(Kind.TRIAL)[:_TRACKED]
    for key in keys:
        few.add(store.expect(Kind.TRIAL, key))
    copy = MlflowCopy(some, f"sqlite:///{some / 'mlflow.db'}", "load")
    began = time.process_time()
    copy.send_new()
    return 1000 * (time.process_time() - began) / len(keys)


def _print(loads: Sequence[Mapping[str, Any]], console: Console) -> None:
    parts = ("sampling", "storage", "records", "tune")
    table = Table("trials", "studies", "driver", *parts, "Tune's processes", "wall",
                  "MLflow, a record", "transactions", box=None)  # fmt: skip
    for column in table.columns:
        column.justify = "right"
    for load in loads:
        table.add_row(
            f"{load['trials']:,}", str(load["studies"]), f"{load['driver']:.1f} ms",
            *(f"{load['parts'][part]:.2f}" for part in parts), f"{load['processes']:.1f}",
            f"{load['wall']:.1f}", f"{load['tracking']:.0f}", str(load["transactions"]),
        )  # fmt: skip
    console.print(table)
    most = max(load["driver"] for load in loads)
    console.print(
        f"Milliseconds of every trial: the driver's processor time and its parts, that of Tune's\n"
        f"processes, the clock's, and what sending a record to MLflow takes. Target {_TARGET:g} ms "
        f"of the\ndriver: {'met' if most <= _TARGET else 'not met'}; the most is {most:.1f} ms.",
        highlight=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
