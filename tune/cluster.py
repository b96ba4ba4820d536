"""Ray: start it here or join the cluster, and say what was found."""

import importlib.util
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.autoscaler.sdk import request_resources

from apgd.errors import InputError
from apgd.machine import free_memory
from tune import interrupts
from tune.head import watched

AUTO = "auto"
_OBJECT_STORE_BYTES = 200 * 2**20
_MOST_PER_GPU = 4
"""More workers than that only wait for each other's kernels."""
_GPUS_SECONDS = 1200.0
_GPUS_POLL_SECONDS = 2.0
_CONNECT_SECONDS = 5.0
_STORE_SHARE = 0.3
"""Of the free memory, for the object store of a Ray that is started here."""


@dataclass(frozen=True)
class Cluster:
    """What Ray has to offer, and how it is cut into workers."""

    nodes: int
    cpus: int
    gpus: int
    joined: bool
    """Whether the cluster was there before us."""
    workers: int
    threads_per_worker: int
    per_gpu: int = 1
    """Workers that share a GPU."""

    @property
    def worker_resources(self) -> dict[str, float]:
        """Ray resources of one worker: a GPU or its share of one, or CPUs where there is none."""
        if self.gpus:
            # A GPU actor that also asks for CPUs can wait for ever on a machine short of them.
            return {"num_gpus": _share(self.per_gpu), "num_cpus": 0}
        return {"num_gpus": 0, "num_cpus": self.threads_per_worker}

    def __str__(self) -> str:
        where = "joined a Ray cluster" if self.joined else "started Ray here"
        nodes = f"{self.nodes} nodes, " if self.nodes > 1 else ""
        kind = "GPU" if self.gpus else "CPU"
        threads = plural(self.threads_per_worker, "thread")
        return (
            f"{where}: {nodes}{plural(self.cpus, 'CPU')}, {plural(self.gpus, 'GPU')}; "
            f"{plural(self.workers, f'{kind} worker')} with {threads} each"
        )


def _share(per_gpu: int) -> float:
    """A part of a GPU of which so many fit, in the ten thousandths that Ray counts in."""
    return 1 if per_gpu == 1 else int(10_000 / per_gpu) / 10_000


def scorers_per_gpu(free_bytes: int, needed_bytes: int, cpus_per_gpu: int) -> int:
    """How many workers may share a GPU while merges are scored: one to four.

    Args:
        free_bytes: memory of the GPU.
        needed_bytes: what one of them needs.
        cpus_per_gpu: each wants a CPU to prepare its batches.
    """
    fitting = free_bytes // max(1, needed_bytes)
    return max(1, min(_MOST_PER_GPU, fitting, cpus_per_gpu))


def plural(count: int, noun: str) -> str:
    """The count and its noun, for example `2 GPUs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plan(nodes: int, cpus: int, gpus: int, joined: bool, most_workers: int) -> Cluster:
    """Cut resources into workers: one per GPU, or else one per CPU slot.

    Args:
        nodes: number of machines.
        cpus: CPUs that Ray may use, over all nodes.
        gpus: GPUs, over all nodes.
        joined: whether the cluster was there before us.
        most_workers: where there is no GPU, more than so many could not be kept busy; with fewer
            workers than CPUs, each gets several threads.
    """
    if cpus < 1:
        raise InputError(f"Ray must have at least one CPU to work with, but has {cpus}")
    if gpus:
        workers = gpus
        threads = max(1, min(8, cpus // gpus))
    else:
        workers = max(1, min(cpus, most_workers))
        threads = max(1, cpus // workers) if nodes == 1 else 1
    return Cluster(nodes, cpus, gpus, joined, workers, threads)


def _silence() -> None:
    """Keep Ray's own lines off the console: what happens to workers is said by who sees to it."""
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A paragraph per process that dies, which no setting turns off; it is in Ray's logs too.
    ray_worker.print_to_stdstream = lambda *_arguments, **_keywords: None


@contextmanager
def ray_session(
    *,
    address: str | None = None,
    cpus: int | None = None,
    dashboard: bool = False,
    most_workers: int = 8,
    shared_bytes: int = 0,
    wanted_gpus: int | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Cluster]:
    """Join a cluster or start Ray on this machine, for the length of a `with` block.

    Args:
        address: address of a cluster, "local" to start one here, or None to join the one that
            runs on this machine (as the head node of a cluster does) and start one otherwise.
        cpus: CPUs to use of this machine when Ray is started here; all, where None.
        dashboard: whether a Ray started here serves its dashboard, on localhost.
        most_workers: see `plan`.
        shared_bytes: what workers will share in the object store.
        wanted_gpus: GPUs that the cluster is asked for, and waited for; no more are used, with 0
            none at all.
        say: called with a sentence where there is something to wait for.

    Raises:
        InputError: where no cluster answers at `address`, or it has no CPUs, or no GPU in time
            where some are wanted, or where Ray is started here and this machine has fewer.
        HeadLostError: where the cluster's head is gone meanwhile.
    """
    _silence()
    joined = _connect(address, cpus, dashboard, shared_bytes)
    interrupts.note_again()
    context = ray.get_runtime_context()
    own = context.get_node_id()

    def is_alive() -> bool:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return any(node["NodeID"] == own and node["Alive"] for node in nodes)

    with watched(context.gcs_address, is_alive, joined, say):
        try:
            if wanted_gpus:
                _have_gpus(wanted_gpus, joined, say)
            total = _resources()
            nodes = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
            gpus = at_most(int(total.get("GPU", 0)), wanted_gpus)
            yield plan(len(nodes), int(total.get("CPU", 0)), gpus, joined, most_workers)
        finally:
            if joined and wanted_gpus and ray.is_initialized():
                request_resources(bundles=[])  # machines that idle may go
            ray.shutdown()


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def at_most(there: int, wanted_gpus: int | None) -> int:
    """GPUs to work on, of those that are there."""
    return there if wanted_gpus is None else min(there, wanted_gpus)


def _have_gpus(wanted: int, joined: bool, say: Callable[[str], None]) -> None:
    """Wait for a cluster's GPUs; a machine of one's own has what it has."""
    if joined:
        _wait_for_gpus(wanted, say)
        return
    there = int(_resources().get("GPU", 0))
    if there < wanted:
        raise InputError(f"this machine has {plural(there, 'GPU')}, but --gpus asks for {wanted}")


def _wait_for_gpus(
    wanted: int,
    say: Callable[[str], None],
    seconds: float = _GPUS_SECONDS,
    poll_seconds: float = _GPUS_POLL_SECONDS,
) -> None:
    """Ask the autoscaler for GPUs, and wait until they are there or no more come."""
    request_resources(bundles=[{"GPU": 1}] * wanted)
    seen, since = -1, time.monotonic()
    while (there := int(_resources().get("GPU", 0))) < wanted:
        interrupts.check()
        if there != seen:
            seen, since = there, time.monotonic()
            say(f"waiting for {plural(wanted, 'GPU')}; {there} are there")
        elif time.monotonic() - since > seconds:
            break
        time.sleep(poll_seconds)
    if not there:
        raise InputError(
            f"--gpus {wanted} were asked for, but no GPU has joined the cluster within "
            f"{seconds / 60:.0f} minutes; see `ray status` and the limits of your account"
        )
    if there < wanted:
        say(f"going on with {there} of {plural(wanted, 'GPU')}: no more came")


def _connect(address: str | None, cpus: int | None, dashboard: bool, shared_bytes: int) -> bool:
    """Connect; whether the cluster was there before."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    there = cluster_to_join(address)
    if there is not None:
        try:
            ray.init(address=there, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"no Ray cluster of this version answers at {there!r}: {error}; "
                f"use --address local to start Ray here"
            ) from error
        return True
    if dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        raise InputError(
            "--dashboard must have Ray's dashboard installed, which is left out by default: add it "
            "with `uv run --extra dashboard ...`"
        )
    with on_loopback():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=_store_bytes(shared_bytes),
            **quiet,
        )
    return False


def cluster_to_join(address: str | None) -> str | None:
    """The address of the cluster that a run joins; None where Ray is started here.

    Args:
        address: as in `ray_session`; `auto` for the cluster that this machine is part of.

    Raises:
        InputError: where there is none, or nothing listens at its address.
    """
    asked = address or os.environ.get("RAY_ADDRESS")
    if asked == "local":
        return None
    if asked is not None and asked != AUTO:
        check_listening(asked)
        return asked
    noted = noted_cluster()
    try:
        if noted is not None:
            check_listening(noted)
    except InputError:
        if asked == AUTO:
            raise
        return None  # what is left of a cluster that is gone
    if noted is None and asked == AUTO:
        raise InputError("the address auto needs a machine that `ray start` made part of a cluster")
    return noted


def check_listening(address: str) -> None:
    """See that something listens at an address; Ray itself would try for minutes.

    Args:
        address: of a cluster's head, `host:port`.

    Raises:
        InputError: where it is of another form, or nothing listens.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"the address of a cluster must be host:port, but got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"no Ray cluster answers at {address} ({reason})") from error


def _store_bytes(shared: int) -> int:
    """Room for what is shared twice over, as far as memory allows."""
    most = int(_STORE_SHARE * free_memory(torch.device("cpu")))
    return max(_OBJECT_STORE_BYTES, min(_OBJECT_STORE_BYTES + 2 * shared, most))


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make a Ray that is started inside listen on the loopback interface alone.

    On Linux Ray takes the machine's outer address, even where it is told 127.0.0.1, and listens on
    every interface; this switch, which it has for other systems, is read when Ray is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def noted_cluster() -> str | None:
    """The address of the cluster that `ray start` made this machine part of; None without one.

    Ray's own look-up would also find the private Ray of another run, and share its CPUs.
    """
    noted = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return noted.read_text().strip() or None if noted.exists() else None
