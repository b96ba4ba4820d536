"""The same questions, asked of every node of a cluster."""

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from apgd.errors import InputError
from tune.cluster import AUTO, check_listening, noted_cluster
from tune.doctor.facts import Facts, Question

_HEALTH_SECONDS = 20.0
_CLOCK_SECONDS = 5.0
_CLOCK_ROUNDS = 5


class Observer:
    """What runs on a node; it imports little until it is asked to look."""

    def clock(self) -> float:
        """What the time is there."""
        return time.time()

    def look(self, question: Question, name: str) -> Facts:
        """Look at the machine, which is called `name`."""
        from tune.doctor.facts import look

        return look(question, name)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came from one node."""

    facts: Facts | None = None
    problem: str | None = None
    """Why nothing came."""
    skew: float = 0.0
    """Seconds by which its clock is ahead of ours."""
    uncertainty: float = 0.0
    """Half of the time that asking for it took."""
    gpus: int = 0
    """GPUs that Ray hands out there."""
    store_bytes: int = 0
    """Size of Ray's object store there."""


def find_cluster(address: str) -> str:
    """The address of a cluster that answers, `host:port`.

    Ray itself would wait for minutes for one that does not.

    Args:
        address: where it should be; `auto` for the one that RAY_ADDRESS names, or else the one that
            `ray start` made this machine a part of.

    Raises:
        InputError: where there is none, or it does not answer.
    """
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or noted_cluster() or ""
        if not address.strip():
            raise InputError(
                "--cluster needs a machine that `ray start` made part of a cluster, or an address "
                "host:port, but this machine is part of none"
            )
    address = address.strip()
    check_listening(address)
    # Something listens; whether it is Ray's head, and awake, is asked by a process that can be
    # ended, because Ray's own look has no time limit.
    asking = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            asking, capture_output=True, text=True, timeout=_HEALTH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"what listens at {address} does not answer as the head of a Ray cluster does within "
            f"{_HEALTH_SECONDS:.0f} s"
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise InputError(
            f"no Ray cluster of this version answers at {address} "
            f"({said[-1].strip() if said else 'it is not well'})"
        )
    return address


def ask_nodes(question: Question, seconds: float) -> dict[str, Answer]:
    """Ask every living node of the cluster that this process has joined; answers by name.

    Args:
        question: what to look at.
        seconds: how long a node may take to start an observer, and again to look; one that takes
            longer has a problem, and holds nobody up.
    """
    nodes = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
    names = _names(nodes)
    observers: dict[str, Any] = {}
    remote: Any = ray.remote(num_cpus=0, num_gpus=0, max_restarts=0)(Observer)
    try:
        for name, node in names.items():
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            observers[name] = remote.options(scheduling_strategy=place).remote()
        answers = _gathered({n: o.clock.remote() for n, o in observers.items()}, seconds)
        awake = [name for name, (_, problem) in answers.items() if problem is None]
        clocks = {name: _clock(observers[name]) for name in awake}
        asked = {name: observers[name].look.remote(question, name) for name in awake}
        answers |= _gathered(asked, seconds)
    finally:
        for observer in observers.values():
            ray.kill(observer)
    found = {}
    for name, node in names.items():
        facts, problem = answers[name]
        skew, uncertainty = clocks.get(name, (0.0, 0.0))
        resources = node["Resources"]
        found[name] = Answer(
            facts=facts if problem is None else None,
            problem=problem,
            skew=skew,
            uncertainty=uncertainty,
            gpus=int(resources.get("GPU", 0)),
            store_bytes=int(resources.get("object_store_memory", 0)),
        )
    return found


def _names(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The nodes by host name, with a part of their identifier where several share one."""
    hosts = Counter(node["NodeManagerHostname"] for node in nodes)
    named = {}
    for node in nodes:
        host = node["NodeManagerHostname"]
        named[host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}"] = node
    return dict(sorted(named.items()))


def _gathered(asked: dict[str, Any], seconds: float) -> dict[str, tuple[Any, str | None]]:
    """What was answered in time, and what happened where nothing was."""
    if not asked:
        return {}
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    found: dict[str, tuple[Any, str | None]] = {}
    for name, reference in asked.items():
        if reference not in done:
            found[name] = (None, f"no answer within {seconds:.0f} s")
            continue
        try:
            found[name] = (ray.get(reference), None)
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            line = next(iter(str(cause).strip().splitlines()), "")
            found[name] = (None, f"{type(cause).__name__}: {line}")
    return found


def _clock(observer: Any) -> tuple[float, float]:
    """How far a node's clock is ahead, and how sure that is, from its quickest answer."""
    best = (0.0, float("inf"))
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        asked = observer.clock.remote()
        done, _ = ray.wait([asked], timeout=_CLOCK_SECONDS)
        if not done:
            break
        try:
            there = ray.get(asked)
        except ray.exceptions.RayError:  # it is found dead when it is asked to look
            break
        half = (time.time() - sent) / 2
        if half < best[1]:
            best = (there - sent - half, half)
    return best
