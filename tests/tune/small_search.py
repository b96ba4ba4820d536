"""A search of seconds: real studies, trials, workers and storage around experts of a few numbers.

Only the model is a stand-in: its score on an example is the larger, the nearer the merge is to the
task's expert, and each example weighs the matrices in its own way.
"""

import errno
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import ray
import torch
from rich.console import Console
from torch import nn

from apgd.checkpoints import save_weights
from apgd.data import ImageExamples, Split
from apgd.data.reader import LeakError, SplitReader
from apgd.files import write_json
from apgd.methods import methods
from apgd.task_vectors import Delta, TaskVectors, two_dimensional
from tune.cluster import Cluster
from tune.evaluators import Purpose, ScoreJob, Workload
from tune.progress import Display
from tune.records import RecordStore
from tune.search import stage
from tune.search.judges import Ended, News, Order
from tune.search.sampling import Sampling
from tune.search.stage import Searched
from tune.search.studies import Study
from tune.search.tuner import Finished, Studies
from tune.workers import pool as worker_pool
from tune.workers import process as worker_process
from tune.workers.pool import Job, WorkerPool
from tune.workers.process import Shared, Worker

TASKS = ("apples", "pears", "plums")
UNSEEN = ("figs",)
SHAPES = {"tall": (12, 5), "wide": (6, 15), "square": (8, 8)}
RANK, EXPERTS = 5, len(TASKS)
NAP = "APGD_TEST_NAP"
"""Seconds that every merge takes longer, where a test needs the time."""
EXAMPLES = 90


def make_run(folder: Path) -> Path:
    """A claimed run folder with base and experts beside it."""
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    save_weights(folder / "base.safetensors", base)
    for task in (*TASKS, *UNSEEN):
        state = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_weights(folder / f"{task}.safetensors", state)
    write_json(folder / "run" / "experiment.json", {"identity": {}, "run_id": "one"})
    return folder


def workload_of(folder: Path) -> Workload:
    experts = tuple((task, str(folder / f"{task}.safetensors")) for task in TASKS)
    return Workload(
        "orchard",
        folder / "run",
        ((0, experts), (1, experts)),
        tuple((seed, (("data", "abc"), ("seed", str(seed)))) for seed in (0, 1)),
        None,
        0,
    )


def small_study(method: str = "doge_ta", seed: int = 0, trials: int = 6, **fields: Any) -> Study:
    return Study(method, seed, trials, RANK, EXPERTS, **fields)


class Orchard:
    """Stands in for a suite."""

    name = "orchard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tasks = [SimpleNamespace(name=task) for task in TASKS]

    is_merged = staticmethod(two_dimensional)

    def build_model(self) -> nn.Module:
        model = nn.Module()
        for name, shape in SHAPES.items():
            model.register_parameter(name, nn.Parameter(torch.empty(shape)))
        return model

    def base_path(self) -> Path:
        return self._folder / "base.safetensors"

    def examples(self, task: str, split: Split) -> ImageExamples:
        start = [Split.TRAIN, Split.VALIDATION, Split.TEST].index(split) * EXAMPLES
        pixels = np.zeros((EXAMPLES, 1, 1, 3), np.uint8)
        return ImageExamples(pixels, np.arange(start, start + EXAMPLES))


class SmallEvaluator:
    """Stands in for an evaluator, and writes down what is asked of it."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.folder = workload.run_dir.parent
        self.unseen = UNSEEN
        self.device, self.merged_bytes, self.room = torch.device("cpu"), 1, 1e9
        self.asked: list[tuple[str, int]] = []
        self.vectors: dict[int, TaskVectors] = {}
        self._delta: Delta | None = None
        self._expert = ""
        paths = {task: self.folder / f"{task}.safetensors" for task in (*TASKS, *UNSEEN)}
        self._targets = TaskVectors(self.folder / "base.safetensors", paths)

    def task_vectors(self, seed: int, _tasks: tuple[str, ...] = ()) -> TaskVectors:
        if seed not in self.vectors:
            paths = self.workload.experts_of(seed)
            self.vectors[seed] = TaskVectors(self.folder / "base.safetensors", paths)
        return self.vectors[seed]

    def reader(self, purpose: Purpose, share: float = 1.0) -> SplitReader:
        return SplitReader(Orchard(self.folder), {purpose.reads}, None, share)

    def load(self, delta: Delta) -> None:
        time.sleep(float(os.environ.get(NAP, "0")))
        with (self.workload.run_dir / "rungs.log").open("a") as file:
            file.write("merge\n")
        self._delta, self._expert = delta, ""

    def score(self, task: str, examples: ImageExamples) -> float:
        self.asked.append((task, len(examples)))
        index = (*TASKS, *UNSEEN).index(task)
        angles = 1 + 0.5 * np.cos(np.outer(examples.labels + index, [1.0, 1.7, 2.9]))
        distances = []
        for name in SHAPES:
            target = self._targets[name][index]
            own = 0.0 if self._expert else float((self._delta[name] - target).norm())  # type: ignore[index]
            distances.append(own / float(target.norm()))
        return float(np.exp(-angles @ np.array(distances)).mean())

    def expert_score(self, _seed: int, task: str, examples: ImageExamples) -> float:
        self._expert = task
        return self.score(task, examples)

    def delta(self, job: ScoreJob, _reader: SplitReader) -> Delta:
        method = methods[job.method]
        return method.merge(self.task_vectors(job.seed), method.parse(dict(job.params)))


class SmallWorker(Worker):
    """A worker with that stand-in, which misbehaves as files in the run folder say."""

    _small: SmallEvaluator | None = None

    def _evaluator_of(self, workload: Workload) -> Any:
        if self._small is None or self._small.workload != workload:
            self._small = SmallEvaluator(workload)
        return self._small

    def score_trial(
        self,
        shared: Shared,
        study: int,
        number: int,
        params: dict[str, Any],
        rung: int,
    ) -> tuple[float, ...]:
        name = f"{study}-{number}-{rung}"
        folder = shared.workload.run_dir / "faults"
        for fault in (name, f"{study}-all-{rung}"):
            if (folder / f"{fault}.raise").exists():
                raise ValueError("the merge is on fire\nand nobody is there")
            if (folder / f"{fault}.stale").exists():
                (folder / f"{fault}.stale").unlink()
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if (folder / f"{fault}.leak").exists():
                reader = self._evaluator_of(shared.workload).reader(Purpose.SEARCH)
                reader.examples("apples", Split.TEST)
            if (folder / f"{fault}.die").exists():
                (folder / f"{fault}.die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if (folder / f"{fault}.stop").exists():
                (folder / f"{fault}.stop").rename(folder / f"{os.getpid()}.stopped")
                os.kill(os.getpid(), signal.SIGSTOP)
            if (folder / f"{fault}.hold").exists():
                node = ray.get_runtime_context().get_node_id()
                (folder / f"{fault}.hold").rename(folder / f"{node}.held")
                while True:  # until the machine is gone
                    time.sleep(1)
        return super().score_trial(shared, study, number, params, rung)


class SmallRemoteWorker(SmallWorker):
    """The same in a process of its own, which need not be deterministic to the last bit."""

    def __init__(self, threads: int, share: int = 1) -> None:
        worker_process.numerics = SimpleNamespace(configure=torch.set_num_threads)  # type: ignore[attr-defined]
        super().__init__(threads, share)


def fault(folder: Path, name: str) -> None:
    """Ask for a fault, for example `0-3-1.raise`: study, trial (or all) and rung."""
    (folder / "run" / "faults").mkdir(exist_ok=True)
    (folder / "run" / "faults" / name).touch()


class Here:
    """Stands in for the pool of workers: one worker in this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(worker_process, "assigned_device", lambda: "cpu")
        patch.setattr(worker_process.numerics, "configure", torch.set_num_threads)
        self.handles = [SmallWorker(threads=1)]

    @contextmanager
    def lent(self) -> Iterator[list[SmallWorker]]:
        yield self.handles

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Any], None], **_: object
    ) -> list[Any]:
        results = []
        for index, job in enumerate(jobs):
            results.append(getattr(self.handles[0], job.method)(*job.arguments))
            on_done(index, results[-1])
        return results


def goes_on(sampling: Sampling, number: int, firsts: Sequence[float]) -> bool:
    """Whether a trial goes on after these rungs."""
    bars = (*sampling.bars(number), math.inf)
    return firsts[-1] >= bars[len(firsts) - 1]


def in_turn(
    samplings: Sequence[Sampling],
    shared: Shared,
    handles: Sequence[Any],
    _scratch: Path,
    on_finish: Finished,
    *_more: object,
) -> None:
    """What Tune does, in this process: one trial after another."""
    studies = Studies(samplings, on_finish, workers=1)
    ended: list[Ended] = []
    while not studies.finished and studies.fault is None and studies.end is None:
        news = News(ended)
        ended = [judged_here(order, handles[0], shared) for order in studies.answer(0, news)[:1]]
        studies.write(now=True)
    if studies.fault is not None:
        raise studies.fault
    if studies.end is not None:
        raise RuntimeError(studies.end)


def judged_here(order: Order, worker: Any, shared: Shared) -> Ended:
    """A trial judged rung by rung."""
    values: list[tuple[float, ...]] = []
    while not values or order.goes_on(values):
        place = (order.study, order.number, order.params)
        try:
            values.append(worker.score_trial(shared, *place, len(values)))
        except (ValueError, LeakError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return Ended(order.place, tuple(values), (), reason, isinstance(error, LeakError))
    return Ended(order.place, tuple(values), ())


def run_here(
    folder: Path, studies: Sequence[Study], patch: pytest.MonkeyPatch, *, bases: bool = False
) -> list[Searched]:
    """The search stage in this process, without Ray."""
    patch.setattr(stage, "run_searches", in_turn)
    if bases:
        node = {"Alive": True, "Resources": {"object_store_memory": 1e9}}
        patch.setattr(stage.ray, "nodes", lambda: [node])
        patch.setattr(stage.ray, "put", lambda found: found)
        patch.setattr(worker_process.ray, "get", lambda found: found)
    else:
        patch.setattr(stage, "shared_bases", lambda *_arguments: {})
    return search_with(Here(patch), folder, studies)


def search_with(pool: Any, folder: Path, studies: Sequence[Study]) -> list[Searched]:
    experiment: Any = SimpleNamespace(folder=folder / "run", storage=None)
    suite: Any = Orchard(folder)
    with Display(Console(quiet=True), folder / "said.log") as display:
        return stage.search_studies(
            studies, experiment, suite, workload_of(folder), pool,
            RecordStore(folder / "run"), display,
        )  # fmt: skip


def small_pool(count: int, patch: pytest.MonkeyPatch) -> WorkerPool:
    """A pool of such workers, which are there, in the Ray session that is open."""
    patch.setattr(worker_pool, "RemoteWorker", SmallRemoteWorker)
    cluster = Cluster(
        nodes=1, cpus=count, gpus=0, joined=False, workers=count, threads_per_worker=1
    )
    pool = WorkerPool(cluster, print)
    ray.get([worker.__ray_ready__.remote() for worker in pool.handles])
    return pool


def storage_url(folder: Path) -> str:
    return f"sqlite:///{(folder / 'run' / 'studies.db').resolve()}"


def said(folder: Path) -> list[str]:
    """What a search has said, but for how many were done."""
    log = folder / "said.log"
    lines = [line.split("  ", 1)[1] for line in log.read_text().splitlines()]
    return [line for line in lines if not line.startswith("✓")]


def merges_scored(folder: Path) -> int:
    """How many merges were put into a model, over all processes."""
    log = folder / "run" / "rungs.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kept_in(folder: Path) -> dict[str, list[Any]]:
    """What Optuna reads back from the storage."""
    return {
        study.study_name.split("/", 1)[1]: [
            (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs)
            for t in study.trials
        ]
        for study in (
            optuna.load_study(study_name=name, storage=storage_url(folder))
            for name in optuna.get_all_study_names(storage_url(folder))
        )
    }


def found_in(results: Sequence[Searched]) -> list[tuple[str, list[Mapping[str, Any]], str]]:
    """What must not depend on how a search was run: trials and the best of them."""

    def told(record: Any) -> dict[str, Any]:
        details = {k: v for k, v in record.details.items() if k != "reads"}
        return {"key": record.key, "params": record.params, "scores": record.scores} | details

    return [(r.study.name, [told(t) for t in r.trials], r.best.key) for r in results]
