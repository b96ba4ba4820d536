"""What a search asks of its driver: processor time of every trial, by what it goes to.

Part of experiments/benchmark_search.py. Workers answer at once, so that all the time is the
search's own.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from ray.actor import ActorHandle
from sqlalchemy import event

from apgd.files import write_json
from experiments.search_rates import CpuMeter
from tune.evaluators import Workload
from tune.records import Kind, RecordStore
from tune.rungs import Judged, RungResult, Rungs
from tune.sampling import Outcome, Sampling
from tune.search import run_searches
from tune.searches import trial_record
from tune.seen import MOST
from tune.studies import Params, Study
from tune.tracking import MlflowCopy
from tune.trials import Trial
from tune.workers import Shared

_TRACKED = 50  # records that are sent to MLflow to see what one takes


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


def measure_load(
    trials: int,
    studies: int,
    folder: Path,
    start: Callable[[], Sequence[ActorHandle[Any]]],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Search with workers that answer at once; milliseconds of every trial and counts.

    Args:
        trials: of all studies together.
        studies: of DOGE TA, each with as many trials.
        folder: a new one.
        start: starts the workers.
        groups: titles of processes by kind, as `CpuMeter` has them.
    """
    write_json(folder / "experiment.json", {"identity": {}, "run_id": "load"})
    all_studies = tuple(
        Study("doge_ta", seed, trials // studies, 128, 8) for seed in range(studies)
    )
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

    with CpuMeter(groups) as processes:
        workers = start()
        wall, driver = time.perf_counter(), time.process_time()
        run_searches(
            samplings, Shared(all_studies, keys, workload, {}), workers, folder / "tune", on_finish
        )
        driver = time.process_time() - driver
        began, wall = wall, time.perf_counter() - wall
        others = processes.between(began, began + wall)
    parts = {name: 1000 * seconds / trials for name, seconds in meter.seconds.items()}
    parts["tune"] = 1000 * driver / trials - sum(parts.values())
    return {
        "trials": trials, "studies": studies, "workers": len(workers),
        "driver": 1000 * driver / trials, "parts": parts, "wall": 1000 * wall / trials,
        "processes": 1000 * others["trials"] / trials,
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
