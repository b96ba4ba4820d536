"""Scoring: task vectors and data held in memory, many merges judged."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from apgd.checkpoints import load_weights
from apgd.data import Examples, Split
from apgd.data.reader import SplitReader
from apgd.errors import InputError
from apgd.evidence import NO_EVIDENCE, Evidence, Need
from apgd.files import sha256_file
from apgd.heads import Voice, judge, judge_together
from apgd.local_copies import local_weights
from apgd.machine import free_memory
from apgd.methods import Method, Value, methods
from apgd.suites import Suite, suites
from apgd.task_vectors import Delta, TaskVectors
from apgd.unlabelled import UnlabelledInputs
from tune.records import Kind, Record, RecordStore, Variant, record_key
from tune.references import ENSEMBLE, EXPERTS, MULTI_TASK, PRETRAINED

_FLOAT = 4


Statistic: TypeAlias = tuple[int, Need, str, str]
"""Seed, kind, task and path of a training statistic."""


class Purpose(StrEnum):
    """What a score is for, and thereby which split it may come from."""

    SEARCH = "search"
    """Choosing between settings: validation only."""
    FINAL = "final"
    """A row of the table: test, once."""

    @property
    def kind(self) -> Kind:
        """The kind of record that comes of it."""
        return Kind.TRIAL if self is Purpose.SEARCH else Kind.EVALUATION

    @property
    def reads(self) -> Split:
        """The only split that may be read for it."""
        return Split.VALIDATION if self is Purpose.SEARCH else Split.TEST


@dataclass(frozen=True)
class Workload:
    """What the scores of one run have in common."""

    suite: str
    run_dir: Path
    experts: tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
    """For every seed, the tasks and the paths of their experts' weights."""
    inputs: tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
    """For every seed, what else determines a score: name and hash."""
    limit: int | None
    """Only the first so many examples of each split, all where None."""
    corruption_limit: int | None
    """Only the first so many test examples of a task are shown corrupted; all where None, and where
    0 there are no corrupted cells at all."""

    data: tuple[tuple[tuple[str, str], str], ...] = ()
    """Hashes of the examples by task and split; what has none is not checked."""
    weights: tuple[tuple[str, str], ...] = ()
    """Hashes of experts by the paths of their weights; what has none is not checked."""
    base: str | None = None
    """Hash of the base; not checked where None."""
    statistics: tuple[Statistic, ...] = ()
    """Every training statistic that a method of the run needs."""

    compiled: bool = False
    """Whether the forward pass of scoring is compiled."""

    joint: tuple[tuple[int, str, str], ...] = ()
    """For every seed, the path of the multi-task model's weights and their hash, if asked for."""

    def experts_of(self, seed: int) -> dict[str, Path]:
        """Paths of one seed's experts by task."""
        return {task: Path(path) for task, path in dict(self.experts)[seed]}

    def statistics_of(self, seed: int, need: Need) -> dict[str, Path]:
        """Paths of one seed's training statistics of a kind, by task."""
        return {
            task: Path(path) for s, kind, task, path in self.statistics if (s, kind) == (seed, need)
        }

    def inputs_of(self, seed: int) -> dict[str, str]:
        """What determines one seed's scores, besides method and parameters."""
        return dict(dict(self.inputs)[seed])

    def joint_of(self, seed: int) -> tuple[Path, str]:
        """Path and hash of one seed's multi-task model."""
        return next((Path(path), sha256) for at, path, sha256 in self.joint if at == seed)


@dataclass(frozen=True)
class ScoreJob:
    """One merge, or one reference row, to be scored."""

    purpose: Purpose
    method: str
    """A merge method, or one of tune.references."""
    variant: Variant
    seed: int
    params: tuple[tuple[str, Value], ...] = ()
    number: int = 0
    """The trial's number in its search."""
    tasks: tuple[str, ...] = ()
    """The tasks whose experts are merged, in this order, and on which alone the merge is scored;
    every task of the suite, the unseen ones and corruptions too where there are none."""

    @property
    def told(self) -> str:
        """What it is called in a sentence."""
        return f"{self.method} ({self.variant}, seed {self.seed})"

    def inputs(self, workload: Workload) -> dict[str, str]:
        """What determines the score, besides method and parameters."""
        inputs = workload.inputs_of(self.seed)
        if self.tasks:
            inputs["merged"] = ",".join(self.tasks)
        if self.method == MULTI_TASK:
            inputs["weights"] = workload.joint_of(self.seed)[1]
        return inputs

    def key(self, workload: Workload) -> str:
        """The key of the record that comes of it."""
        return record_key(
            self.purpose.kind,
            self.method,
            self.seed,
            dict(self.params),
            self.inputs(workload),
            self.variant,
        )


def mean_score(record: Record, tasks: Sequence[str]) -> float:
    """Mean score over tasks, on the split that the record's kind stands for."""
    split = Purpose.SEARCH.reads if record.kind is Kind.TRIAL else Purpose.FINAL.reads
    return sum(record.scores[f"{split}/{task}"] for task in tasks) / len(tasks)


class CheckedExamples:
    """A suite's examples, held once read, and known to be those that the run began with.

    Args:
        suite: where they come from.
        hashes: what their `sha256` must be, by task and split.
    """

    def __init__(self, suite: Suite, hashes: Mapping[tuple[str, str], str]) -> None:
        self._suite = suite
        self._hashes = hashes
        self._held: dict[tuple[str, Split], Examples] = {}

    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split.

        Raises:
            InputError: where this machine has others than were hashed at the run's beginning.
        """
        if (task, split) not in self._held:
            found = self._suite.examples(task, split)
            asked = self._hashes.get((task, str(split)), found.sha256)
            if found.sha256 != asked:
                raise InputError(
                    f"the {split} examples of {task} must have the hash {asked[:12]} that the run "
                    f"began with, but on this machine have {found.sha256[:12]}; give all machines "
                    f"the same revision of them (`apgd data prepare`)"
                )
            self._held[task, split] = found
        return self._held[task, split]


class Evaluator:
    """Holds a model, heads, examples and task vectors, and scores one job after another.

    Args:
        workload: what its scores have in common.
        device: where merges are made and scored.
        part: of the device's memory, what it may reckon with; with 0 it keeps no task vectors.
    """

    def __init__(self, workload: Workload, device: str, part: float = 1.0) -> None:
        self.workload = workload
        self._device = device
        self._part = part
        self._suite = suites[workload.suite]
        self._source = CheckedExamples(self._suite, dict(workload.data))
        self._store = RecordStore(workload.run_dir)
        self._base = self._checked_base()
        self._model: nn.Module = self._suite.build_model()
        self._model.load_state_dict(self._base)
        heads = {
            task.name: self._suite.head(self._model, task).to(device)
            for task in (*self._suite.tasks, *self._suite.unseen)
        }
        self._heads = {t: h.compiled() for t, h in heads.items()} if workload.compiled else heads
        self._model.to(device)
        self._vectors: dict[tuple[int, tuple[str, ...]], TaskVectors] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._starts: dict[str, Tensor] = {}  # θ_0 where merges are put into the model
        self._holds_merge = False

    def _checked_base(self) -> dict[str, Tensor]:
        path = self._suite.base_path()
        found, asked = sha256_file(path), self.workload.base
        if asked is not None and found != asked:
            raise InputError(
                f"the base must have the hash {asked[:12]} that the run began with, but "
                f"{path} on this machine has {found[:12]}; give all machines the same hub cache"
            )
        return load_weights(path, "the base")

    def run(self, job: ScoreJob) -> float:
        """Score a job unless its record exists, and put the record on disk.

        Returns:
            The mean score over the merged tasks, at most 1.
        """
        record = self._store.get(job.purpose.kind, job.key(self.workload))
        if record is None:
            record = self._score(job)
        return mean_score(record, job.tasks or [task.name for task in self._suite.tasks])

    def merged(self, job: ScoreJob) -> Mapping[str, Tensor]:
        """The state dict that a merge is judged with; test-time methods adapt for it once more."""
        return self._merge(job, self.reader(job.purpose))

    def reader(self, purpose: Purpose, share: float = 1.0) -> SplitReader:
        """The examples that may be read for a purpose, or a share of them."""
        return SplitReader(self._source, {purpose.reads}, self.workload.limit, share)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of the tasks that no expert has seen."""
        return tuple(task.name for task in self._suite.unseen)

    def load(self, delta: Delta) -> None:
        """Put a merge into the model: θ_0 + delta where it is merged, θ_0 elsewhere."""
        if not self._holds_merge:
            self._model.load_state_dict(self._base)
            self._holds_merge = True
        state = self._model.state_dict()
        for name, change in delta.items():
            if name not in self._starts:
                self._starts[name] = self._base[name].to(state[name].device, torch.float32)
            start = self._starts[name]
            state[name].copy_(start + change.to(start.device))

    def score(self, task: str, examples: Examples) -> float:
        """The mean of a task's answers by what is in the model."""
        return float(judge(self._model, self._heads[task], examples).mean())

    def expert_score(self, seed: int, task: str, examples: Examples) -> float:
        """The same by the task's own expert."""
        self._load(self._experts(seed, kept=1)(task))
        return self.score(task, examples)

    def delta(self, job: ScoreJob, reader: SplitReader) -> Delta:
        """θ − θ_0 of a merge."""
        vectors, method = self.task_vectors(job.seed, job.tasks), methods[job.method]
        evidence = self._evidence(method, job, reader)
        return method.merge(vectors, method.parse(dict(job.params)), evidence)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights into the model."""
        self._holds_merge = False
        self._model.load_state_dict(weights)

    def _score(self, job: ScoreJob) -> Record:
        reader = self.reader(job.purpose)
        started = time.perf_counter()
        answered = self._judge(job, reader)
        merged = time.perf_counter()
        answers: dict[str, np.ndarray] = {}
        for condition, task in self._cells(job):
            examples = self._cell_examples(reader, condition, task)
            answers[f"{condition}/{task}"] = answered(task, examples)
        record = Record(
            kind=job.purpose.kind,
            method=job.method,
            variant=job.variant,
            seed=job.seed,
            params=dict(job.params),
            inputs=job.inputs(self.workload),
            scores={cell: float(values.mean()) for cell, values in answers.items()},
            seconds={"merge": merged - started, "score": time.perf_counter() - merged},
            details={"number": job.number, "reads": dict(reader.reads)},
        )
        self._store.add(record, answers)
        return record

    def _cells(self, job: ScoreJob) -> Iterator[tuple[str, str]]:
        """Condition and task of everything that the job is scored on."""
        split = job.purpose.reads
        if job.tasks:
            yield from ((split, task) for task in job.tasks)
            return
        seen = [task.name for task in self._suite.tasks]
        unseen = [] if job.method == EXPERTS else [task.name for task in self._suite.unseen]
        if job.purpose is Purpose.SEARCH:
            yield from ((split, task) for task in seen)
            return
        corrupted = () if self.workload.corruption_limit == 0 else self._suite.corrupted
        for task in (*seen, *unseen):
            yield split, task
            if task in corrupted:
                yield from ((corruption, task) for corruption in self._suite.corruptions)

    def _cell_examples(self, reader: SplitReader, condition: str, task: str) -> Examples:
        """Examples of a cell, kept once made; the reader still counts and guards each read."""
        split = Split.TEST if condition in self._suite.corruptions else Split(condition)
        examples = reader.examples(task, split)
        if condition == split:
            return examples
        cell = (condition, task)
        if cell not in self._examples:
            count = min(len(examples), self.workload.corruption_limit or len(examples))
            self._examples[cell] = self._suite.corrupted_examples(task, condition, count)
        return self._examples[cell]

    def _experts(self, seed: int, kept: int) -> Callable[[str], Mapping[str, Tensor]]:
        """Task -> its expert's state dict; the last `kept` ones stay in memory."""
        paths = self.expert_files(seed)

        @lru_cache(maxsize=kept)
        def expert(task: str) -> Mapping[str, Tensor]:
            return load_weights(paths[task], f"expert {task}", self._base)

        return expert

    def _voices(self, seed: int) -> list[Voice]:
        """One seed's experts, each put into the model when it is its turn."""
        tasks = list(self.workload.experts_of(seed))
        one = sum(tensor.numel() * _FLOAT for tensor in self._base.values())
        room = len(tasks) * one <= 0.25 * free_memory(torch.device("cpu"))
        expert = self._experts(seed, kept=len(tasks) if room else 1)

        def voice(task: str) -> nn.Module:
            self._load(expert(task))
            return self._model

        return [partial(voice, task) for task in tasks]

    def _judge(self, job: ScoreJob, reader: SplitReader) -> Callable[[str, Examples], np.ndarray]:
        """Task and examples -> the answers of what is scored, one number per example."""
        if job.method == ENSEMBLE:
            voices = self._voices(job.seed)
            return lambda task, examples: judge_together(voices, self._heads[task], examples)
        load = self._loader(job, reader)
        loaded: Mapping[str, Tensor] | None = None

        def alone(task: str, examples: Examples) -> np.ndarray:
            nonlocal loaded
            weights = load(task)
            if weights is not loaded:
                self._load(weights)
                loaded = weights
            return judge(self._model, self._heads[task], examples)

        return alone

    def _loader(self, job: ScoreJob, reader: SplitReader) -> Callable[[str], Mapping[str, Tensor]]:
        """Task -> the state dict that is judged on it; the same object where it is the same."""
        if job.method == PRETRAINED:
            return lambda _task: self._base
        if job.method == EXPERTS:
            return self._experts(job.seed, kept=1)  # conditions of a task follow one another
        if job.method == MULTI_TASK:
            path = local_weights(*self.workload.joint_of(job.seed), "the multi-task model")
            joint = load_weights(path, "the multi-task model", self._base)
            return lambda _task: joint
        merged = self._merge(job, reader)
        return lambda _task: merged

    @property
    def device(self) -> torch.device:
        """Where merges are made and scored."""
        return torch.device(self._device)

    @property
    def merged_bytes(self) -> int:
        """Size of what is merged in float32, in bytes."""
        is_merged = self._suite.is_merged
        return sum(t.numel() * _FLOAT for n, t in self._base.items() if is_merged(n, t))

    @property
    def room(self) -> float:
        """Memory in bytes to reckon with: a part of all of a GPU's, or of a machine's free one."""
        if self.device.type == "cuda":
            return self._part * torch.cuda.mem_get_info(self.device)[1]
        return self._part * free_memory(self.device)

    def _can_keep(self, experts: int) -> bool:
        """Whether memory has room for these task vectors too; where not, merges read the files."""
        share = 0.25  # a machine's memory is shared with other workers
        if self.device.type == "cuda":
            share = 0.5
            kept = (v for v in self._vectors.values() if v.is_kept_on(self.device))
            experts += sum(len(vectors.experts) for vectors in kept)
        # Some methods change the task vectors first, and keep those beside them.
        return 2 * experts * self.merged_bytes <= share * self.room

    def _merge(self, job: ScoreJob, reader: SplitReader) -> dict[str, Tensor]:
        return self.task_vectors(job.seed, job.tasks).apply(self.delta(job, reader))

    def expert_files(self, seed: int) -> dict[str, Path]:
        """Where this machine reads one seed's experts, by task.

        Raises:
            InputError: where one is not what the run began with.
        """
        hashes = dict(self.workload.weights)
        return {
            task: local_weights(path, hashes[str(path)], f"expert {task}")
            if str(path) in hashes else path
            for task, path in self.workload.experts_of(seed).items()
        }  # fmt: skip

    def task_vectors(self, seed: int, tasks: tuple[str, ...] = ()) -> TaskVectors:
        """Those of a seed's experts: of all tasks, or of some in their order."""
        if (seed, tasks) not in self._vectors:
            paths = self.expert_files(seed)
            paths = {task: paths[task] for task in tasks or paths}
            self._vectors[seed, tasks] = TaskVectors(
                self._base, paths, self._suite.is_merged, device=self._device,
                # Of a few tasks they are wanted once or twice.
                keep=not tasks and self._can_keep(len(paths)),
            )  # fmt: skip
        return self._vectors[seed, tasks]

    def _evidence(self, method: Method, job: ScoreJob, reader: SplitReader) -> Evidence:
        """What the method needs besides base and experts.

        Unlabelled inputs are those of the split that is scored, as in the published protocol:
        test-time methods adapt to what they will be judged on, without its labels.
        """
        tasks = job.tasks or tuple(self.workload.experts_of(job.seed))
        if method.needs.is_statistic:
            found = self.workload.statistics_of(job.seed, method.needs)
            return Evidence(statistics={task: found[task] for task in tasks})
        if method.needs is not Need.INPUTS:
            return NO_EVIDENCE
        return Evidence(
            inputs=UnlabelledInputs(
                model=self._model,
                heads={task: self._heads[task] for task in tasks},
                inputs={task: reader.inputs(task, job.purpose.reads) for task in tasks},
                label=f"{self.workload.suite}, {job.purpose.reads}",
            )
        )
