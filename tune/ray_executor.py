"""The layers of a merge on the workers of a Ray cluster."""

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import ray
import torch

from apgd import numerics
from apgd.errors import InputError
from apgd.execution import SPARE_BYTES
from apgd.machine import free_memory
from apgd.task_vectors import TaskVectors
from tune.cluster import Cluster
from tune.dispatch import Crew, Patience
from tune.workers import assigned_device, own_code

T = TypeVar("T")
R = TypeVar("R")

_RESTARTS = 5
_ATTEMPTS = 3
_START_SECONDS = 180


def _all_answers(asked: list[Any]) -> list[Any]:
    """What workers that are just starting answer.

    Raises:
        InputError: where one does not start in time.
    """
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=_START_SECONDS)
    if silent:
        raise InputError(
            f"{len(asked)} workers must start within {_START_SECONDS} s, but only "
            f"{len(answered)} did; are the cluster's CPUs or GPUs in use by something else?"
        )
    answers: list[Any] = ray.get(asked)
    return answers


class LayerWorker:
    """What runs in a worker process: functions of task vectors that it opens itself."""

    def __init__(self, threads: int) -> None:
        numerics.configure(threads)
        self._device = torch.device(assigned_device())
        self._held: tuple[str, TaskVectors] | None = None

    def introduce(self) -> tuple[str, str, int]:
        """Its machine, the hash of the source of apgd and tune that it runs, and free memory."""
        return (
            platform.node(),
            own_code(),
            free_memory(self._device),
        )

    def call(
        self,
        function: Callable[[TaskVectors, T], R],
        vectors: list["ray.ObjectRef[TaskVectors]"],
        item: T,
    ) -> R:
        """The function's result; the task vectors are fetched once and then kept open."""
        name = vectors[0].hex()
        if self._held is None or self._held[0] != name:
            self._held = (name, ray.get(vectors[0]))
            self._held[1].device = self._device
        return function(self._held[1], item)


class RayExecutor:
    """Layers on the workers of a cluster, those that take longest first.

    Experts given as paths are read by each worker where they lie, which must be storage that all
    machines see; those in memory are sent once to each machine, for which Ray's object store must
    have room. Of each machine as many workers are used as its memory is enough for. What a worker
    that dies was doing is done again by another. Results are those of a single process, bit for
    bit. Use it in a `with` block, at whose end the workers go.

    Args:
        cluster: from `tune.cluster.ray_session`; its workers own a GPU each, or CPUs.

    Raises:
        InputError: where a machine runs other code than this process, or workers do not start.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._on_gpus = bool(cluster.gpus)
        options: dict[str, Any] = {"max_restarts": _RESTARTS, **cluster.worker_resources}
        remote: Any = ray.remote(**options)(LayerWorker)
        self._workers = [remote.remote(cluster.threads_per_worker) for _ in range(cluster.workers)]
        expected = own_code()
        asked: list[Any] = [worker.introduce.remote() for worker in self._workers]
        self._met: list[tuple[str, str, int]] = _all_answers(asked)
        self._sent: tuple[TaskVectors, ray.ObjectRef[TaskVectors]] | None = None
        for machine, code, _free in self._met:
            if code != expected:
                raise InputError(
                    f"all machines must run the same code, but {machine} has {code} and this "
                    f"process {expected}; bring it up to date with `ray up`"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for worker in self._workers:
            ray.kill(worker)

    def map(
        self,
        function: Callable[[TaskVectors, T], R],
        vectors: TaskVectors,
        items: Sequence[T],
        bytes_of: Sequence[int],
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every item, as they are done.

        Raises:
            InputError: where no machine has the memory that the largest item needs.
        """
        workers = self._that_fit(max(bytes_of, default=0))
        if self._sent is None or self._sent[0] is not vectors:
            self._sent = (vectors, ray.put(vectors))
        shared = [self._sent[1]]
        called = ray.put(function)
        try:
            yield from Crew(workers).dispatch(
                lambda worker, number: worker.call.remote(called, shared, items[number]),
                len(items),
                attempts=_ATTEMPTS,
                patience=Patience(twice=None),
            )
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None  # one sentence, as if it had happened here
            raise

    def _that_fit(self, largest: int) -> list[Any]:
        """As many workers of each machine as its memory is enough for, one item on each."""
        needed = largest + SPARE_BYTES
        chosen: list[Any] = []
        taken = Counter[str]()
        for worker, (machine, _code, free) in zip(self._workers, self._met, strict=True):
            # A GPU has one worker and its own memory; a machine's is shared by its workers.
            place = machine if not self._on_gpus else f"{machine}/{len(chosen)}"
            if (taken[place] + 1) * needed <= free:
                taken[place] += 1
                chosen.append(worker)
        if not chosen:
            most = max(free for _machine, _code, free in self._met)
            raise InputError(
                f"the largest item needs {needed / 2**30:.1f} GiB on a worker, but no machine has "
                f"more than {most / 2**30:.1f} GiB free; use machines with more memory, or merge "
                f"fewer experts at a time"
            )
        return chosen
