"""What runs in a worker's process: rendering, training, merging and scoring.

A worker lives as long as its pool, so models, data and task vectors are loaded once. Every call
either goes on from its own checkpoint or is short, so that it can be begun again elsewhere.
"""

import functools
import gc
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor

from apgd import numerics
from apgd.data import Split
from apgd.errors import MemoryFullError
from apgd.finetune import ExpertSpec, finetune
from apgd.local_copies import local_weights
from apgd.machine import is_broken_gpu, is_out_of_memory
from apgd.methods import Value
from apgd.projective import task_bases
from apgd.suites import suites
from apgd.training_statistics import StatisticSpec, collect_to
from tune.evaluators import Evaluator, ScoreJob, Workload
from tune.experiment import run_id
from tune.geometry import measure
from tune.search.studies import Study
from tune.search.trials import Trial, TrialScorer
from tune.workers.introductions import Introduction, own_code, own_identity, own_libraries

Answer = TypeVar("Answer")
Given = ParamSpec("Given")


def assigned_device() -> str:
    """The torch device that Ray assigned to this process.

    Raises:
        RuntimeError: where a GPU was assigned but another number of GPUs is visible, which would
            let two workers share one.
    """
    gpus = ray.get_gpu_ids()
    if not gpus:
        return "cpu"
    visible = torch.cuda.device_count()
    if visible != 1:
        raise RuntimeError(f"one GPU must be visible to a GPU worker, but {visible} are")
    return "cuda:0"


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common, put into Ray's object store once."""

    studies: tuple[Study, ...]
    keys: tuple[str, ...]
    """The studies' keys, see `Study.key`."""
    workload: Workload
    bases: dict[int, ray.ObjectRef[dict[str, list[np.ndarray]]]]
    """By seed and matrix: every expert's leading left singular vectors, (m, k) float32. All workers
    of a node read the same memory."""


def _as_tensors(arrays: dict[str, list[np.ndarray]]) -> dict[str, list[Tensor]]:
    """Views of arrays that lie in shared memory, which is read-only; nobody writes to a basis."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: [torch.from_numpy(a) for a in of] for name, of in arrays.items()}


def _ends_with_its_gpu(
    method: Callable[Concatenate["Worker", Given], Answer],
) -> Callable[Concatenate["Worker", Given], Answer]:
    """A method that ends the worker's process where the GPU does nothing more for it.

    A process that lives on would fail every call at once, and be the first that is free for the
    next one. One that ends is a loss like any: others do its work, and it is started again.
    """

    @functools.wraps(method)
    def call(self: "Worker", /, *given: Given.args, **named: Given.kwargs) -> Answer:
        try:
            return method(self, *given, **named)
        except RuntimeError as error:
            if not is_broken_gpu(error):
                raise
            sys.stderr.write(
                f"{self._device} of {platform.node()} does nothing more for process {os.getpid()}, "
                f"which ends itself: {error}\n"
            )
            sys.stderr.flush()
            os._exit(1)

    return call


class Worker:
    """What runs in a worker process.

    Args:
        threads: CPU threads that it may use.
        share: workers that share its GPU, of whose memory it takes one part of so many.
    """

    def __init__(self, threads: int, share: int = 1) -> None:
        self._threads = threads
        numerics.configure(threads)  # before anything touches the GPU
        self._device = assigned_device()
        self._part = 1 / share
        if share > 1 and torch.device(self._device).type == "cuda":
            torch.cuda.set_per_process_memory_fraction(self._part)
        self._progress = (0, 0)
        self._evaluator: Evaluator | None = None
        self._trials: TrialScorer | None = None
        self._searched: tuple[Workload, tuple[str, ...]] | None = None

    def introduce(self, run_dir: Path) -> Introduction:
        """What the driver must know before it hands out work."""
        free = torch.cuda.mem_get_info()[0] if self._device != "cpu" else None
        return Introduction(
            machine=platform.node(),
            device=torch.cuda.get_device_name() if free is not None else "CPU",
            free_bytes=free,
            code=own_code(),
            libraries=own_libraries(),
            run_id=run_id(run_dir) if (run_dir / "experiment.json").exists() else None,
        )

    def identify(self) -> tuple[str, str]:
        """Its machine, and `own_identity`: all that a search asks of one that comes back."""
        return platform.node(), own_identity()

    def prepare(self, suite: str, task: str, split: Split) -> str:
        """Make a split's examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].examples(task, split).sha256

    def prepare_corrupted(self, suite: str, task: str, corruption: str) -> str:
        """Make a task's corrupted test examples ready on this machine; their hash."""
        numerics.configure(self._threads)
        return suites[suite].corrupted_examples(task, corruption, sys.maxsize).sha256

    @_ends_with_its_gpu
    def train(self, suite: str, spec: ExpertSpec, root: Path) -> dict[str, Any]:
        """Fine-tune an expert, or go on with it; its manifest."""
        numerics.configure(self._threads)
        self._progress = (0, spec.settings.steps)

        def report(done: int, total: int) -> None:
            self._progress = (done, total)

        expert = finetune(suites[suite], spec, root, device=self._device, report=report)
        return expert.manifest

    @_ends_with_its_gpu
    def collect(self, suite: str, spec: StatisticSpec, weights: Path, root: Path) -> Path:
        """Compute an expert's training statistic, unless it is there; its file.

        Raises:
            InputError: where the expert is not the one that the statistic is of.
        """
        numerics.configure(self._threads)
        expert = local_weights(weights, spec.expert_sha256, f"expert {spec.task}")
        return collect_to(root, spec, suites[suite], expert, device=self._device)

    @_ends_with_its_gpu
    def score(self, workload: Workload, job: ScoreJob) -> float:
        """Score a merge or a reference row and put the record on disk; its mean accuracy."""
        numerics.configure(self._threads)
        self._trials = None  # a search is over, and its memory is wanted
        return self._with_room(lambda: self._evaluator_of(workload).run(job))

    @_ends_with_its_gpu
    def measure(self, workload: Workload, job: ScoreJob) -> None:
        """Hold the task vectors of a seed, or a merge against them, and write down what comes."""
        numerics.configure(self._threads)
        self._with_room(lambda: measure(self._evaluator_of(workload), job))

    @_ends_with_its_gpu
    def decompose(self, workload: Workload, seed: int, name: str, count: int) -> list[np.ndarray]:
        """Leading left singular vectors of a matrix's task vectors, (m, at most `count`) each."""
        numerics.configure(self._threads)
        tau = self._evaluator_of(workload).task_vectors(seed)[name]
        return [basis.cpu().numpy() for basis in task_bases(tau, count)]

    @_ends_with_its_gpu
    def score_trial(
        self,
        shared: Shared,
        study: int,
        number: int,
        params: dict[str, Value],
        rung: int,
    ) -> tuple[float, ...]:
        """Judge a rung of one trial of a search; the objectives of its best setting."""
        numerics.configure(self._threads)
        trial = Trial(shared.studies[study], shared.keys[study], number, tuple(params.items()))
        return self._with_room(lambda: self._trials_of(shared).rung(trial, rung).values)

    def _trials_of(self, shared: Shared) -> TrialScorer:
        evaluator = self._evaluator_of(shared.workload)
        if self._trials is None or self._searched != (shared.workload, shared.keys):
            self._trials = TrialScorer(evaluator)
            self._searched = (shared.workload, shared.keys)
            for seed, arrays in shared.bases.items():
                self._trials.share_bases(seed, _as_tensors(ray.get(arrays)))
        return self._trials

    def _with_room(self, act: Callable[[], Answer]) -> Answer:
        """Do something that needs a GPU's memory; once more without what is held, where it lacks.

        From then on no task vectors are held.

        Raises:
            MemoryFullError: where even then it does not fit.
        """
        try:
            return act()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold what was computed so far
        self._evaluator = self._trials = None
        self._part = 0.0
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()
            # What filled it is not what is needed; the next run goes by the peak.
            torch.cuda.reset_peak_memory_stats()
        try:
            return act()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MemoryFullError(
                f"merges and scores do not fit into the memory of {self._device} of "
                f"{platform.node()}, which workers may share: --scorers-per-gpu 1 gives each GPU "
                f"to one ({reason})"
            ) from None

    def peak(self) -> tuple[str, int]:
        """Its device, and the most memory in bytes that tensors took there; 0 on a CPU."""
        if self._device == "cpu":
            return "CPU", 0
        return torch.cuda.get_device_name(), int(torch.cuda.max_memory_reserved())

    def _evaluator_of(self, workload: Workload) -> Evaluator:
        if self._evaluator is None or self._evaluator.workload != workload:
            self._evaluator = Evaluator(workload, self._device, self._part)
        return self._evaluator

    def progress(self) -> tuple[int, int]:
        """Steps done and total of the training under way."""
        return self._progress
