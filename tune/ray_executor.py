"""The layers of a merge on the workers of a Ray cluster."""

import platform
import sys
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
from tune.workers.dispatch import Crew, Patience, Reference, Say
from tune.workers.introductions import own_identity
from tune.workers.process import assigned_device

T = TypeVar("T")
R = TypeVar("R")

_ATTEMPTS = 3
_START_SECONDS = 180


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _introduction(worker: Any) -> Reference:
    reference: Reference = worker.introduce.options(max_task_retries=-1).remote()
    return reference


class LayerWorker:
    """What runs in a worker process: functions of task vectors that it opens itself."""

    def __init__(self, threads: int) -> None:
        numerics.configure(threads)
        self._device = torch.device(assigned_device())
        self._held: tuple[str, TaskVectors] | None = None

    def introduce(self) -> tuple[str, str, int]:
        """Its machine, the hash of the code and libraries that it runs, and free memory."""
        return platform.node(), own_identity(), free_memory(self._device)

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
    that dies was doing is done again by another; one that comes back with other code or libraries
    is left out. Results are those of a single process, bit for bit. Use it in a `with` block, at
    whose end the workers go.

    Args:
        cluster: from `tune.cluster.ray_session`; its workers own a GPU each, or CPUs.
        say: called with one sentence for whatever happens to a worker; on stderr, where not given.

    Raises:
        InputError: where a machine runs other code or libraries than this process, or workers do
            not start.
    """

    def __init__(self, cluster: Cluster, say: Say = _tell) -> None:
        self._on_gpus, self._say = bool(cluster.gpus), say
        options: dict[str, Any] = {"max_restarts": -1, **cluster.worker_resources}
        remote: Any = ray.remote(**options)(LayerWorker)
        count = cluster.workers
        self._workers = [remote.remote(cluster.threads_per_worker) for _ in range(count)]
        self._identity = own_identity()
        self._met: dict[int, tuple[str, str, int]] = {}
        self._left = set[int]()
        self._sent: tuple[TaskVectors, ray.ObjectRef[TaskVectors]] | None = None
        there = self._crew(range(count)).gather(_START_SECONDS)
        if there < count:
            raise InputError(
                f"{count} workers must start within {_START_SECONDS} s, but only {there} did; are "
                f"the cluster's CPUs or GPUs in use by something else?"
            )

    def _crew(self, numbers: Sequence[int]) -> Crew:
        """Some of the workers, each of which must say who it is before it works."""

        def admit(number: int, met: tuple[str, str, int]) -> None:
            machine, identity, _free = met
            if identity != self._identity:
                raise InputError(
                    f"all machines must run the same code and libraries, but {machine} has "
                    f"{identity} and this process {self._identity}; bring it up to date with "
                    f"`ray up`"
                )
            self._met[numbers[number]] = met
            crew.name(number, machine)

        crew = Crew(
            [self._workers[number] for number in numbers],
            arrive=_introduction,
            admit=admit,
            begin_away=True,
            say=self._say,
        )
        return crew

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
            RuntimeError: where no worker is left.
        """
        numbers = self._that_fit(max(bytes_of, default=0))
        if self._sent is None or self._sent[0] is not vectors:
            self._sent = (vectors, ray.put(vectors))
        shared = [self._sent[1]]
        called = ray.put(function)
        crew = self._crew(numbers)
        try:
            yield from crew.dispatch(
                lambda worker, number: worker.call.remote(called, shared, items[number]),
                len(items),
                attempts=_ATTEMPTS,
                patience=Patience(twice=None),
            )
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None  # one sentence, as if it had happened here
            raise
        finally:
            self._left |= {numbers[number] for number in crew.left}

    def _that_fit(self, largest: int) -> list[int]:
        """As many workers of each machine as its memory is enough for, one item on each."""
        needed = largest + SPARE_BYTES
        chosen: list[int] = []
        taken = Counter[str]()
        met = {n: self._met[n] for n in range(len(self._workers)) if n not in self._left}
        if not met:
            raise RuntimeError("no worker is left that may work on this merge")
        for number, (machine, _identity, free) in met.items():
            # A GPU has one worker and its own memory; a machine's is shared by its workers.
            place = machine if not self._on_gpus else f"{machine}/{number}"
            if (taken[place] + 1) * needed <= free:
                taken[place] += 1
                chosen.append(number)
        if not chosen:
            most = max(free for _machine, _identity, free in met.values())
            raise InputError(
                f"the largest item needs {needed / 2**30:.1f} GiB on a worker, but no machine has "
                f"more than {most / 2**30:.1f} GiB free; use machines with more memory, or merge "
                f"fewer experts at a time"
            )
        return chosen
