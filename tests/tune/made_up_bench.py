"""A bench whose scores are made up: what ablations read, without anything being merged."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from apgd.methods import Value
from apgd.suites import suites
from tune.ablations.bench import Bench, Cell
from tune.ablations.settings import AblationSettings
from tune.evaluators import ScoreJob, Workload
from tune.records import Record, RecordStore
from tune.references import EXPERTS

EXAMPLES = 200
RANK = 128

Rate = Callable[[ScoreJob, str], float]
"""Share of right answers of a job on a task."""


def usual(job: ScoreJob, task: str) -> float:
    """Accuracy that grows with λ being task-aware and so on, by known amounts."""
    if job.method == EXPERTS:
        return 0.9
    params = dict(job.params)
    rate = 0.5 + 0.02 * (len(task) % 3) + 0.01 * job.seed
    rate -= 0.01 * (len(job.tasks or "12345678") - 2)
    if job.method != "doge_ta":
        return rate
    rate += 0.04 if params["uniform_coefficient"] is None else 0.0
    rate += 0.08 if params["keep_ratio"] < 1 else 0.0
    rate += 0.06 if params["iterations"] > 0 else 0.0
    return rate + (0.02 if params["iterations"] > 0 and params["basis_size"] > 0 else 0.0)


class Scorer:
    """Makes records up, and keeps what was asked for."""

    def __init__(self, workload: Workload, store: RecordStore, rate: Rate) -> None:
        self.workload, self.store, self.rate = workload, store, rate
        self.asked: list[ScoreJob] = []
        self.scored: list[ScoreJob] = []

    def __call__(self, stage: str, jobs: Sequence[ScoreJob]) -> None:
        self.asked += jobs
        for job in jobs:
            if self.store.get(job.purpose.kind, job.key(self.workload)) is None:
                self.scored.append(job)
                self._make(job)

    def _make(self, job: ScoreJob) -> None:
        tasks = job.tasks or tuple(task.name for task in suites["mini_vision"].tasks)
        answers = {}
        for task in tasks:
            # Examples have an order of difficulty that all merges share.
            order = np.random.default_rng([len(task), ord(task[0])]).permutation(EXAMPLES)
            answers[f"{job.purpose.reads}/{task}"] = order < round(EXAMPLES * self.rate(job, task))
        record = Record(
            kind=job.purpose.kind,
            method=job.method,
            variant=job.variant,
            seed=job.seed,
            params=dict(job.params),
            inputs=job.inputs(self.workload),
            scores={cell: float(values.mean()) for cell, values in answers.items()},
            seconds={"merge": 1.0},
            details={"number": 0, "reads": {str(job.purpose.reads): 1}},
        )
        self.store.add(record, answers)


def bench(folder: Path, rate: Rate = usual, **fields: object) -> tuple[Bench, Scorer]:
    """A bench in a folder, which may hold the records of an earlier one."""
    settings = AblationSettings(**fields)  # type: ignore[arg-type]
    inputs = tuple((seed, (("experts", str(seed)),)) for seed in range(settings.seeds))
    workload = Workload("mini_vision", folder, (), inputs, None, 0)
    store = RecordStore(folder)
    scorer = Scorer(workload, store, rate)

    def search(cells: Sequence[Cell]) -> dict[Cell, Mapping[str, Value]]:
        return {(expert, seed): {"eta": 0.1 + 0.1 * seed} for expert, seed in cells}

    suite = suites["mini_vision"]
    return Bench(settings, suite, RANK, workload, store, scorer, search), scorer
