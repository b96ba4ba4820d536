"""Machines are lost: a node's work is begun again elsewhere, and without the head all ends."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.small_run import QUICK, SmallRun, assert_same

Survived = Callable[..., None]
_NODE = "loss of a worker node"
_HEAD = "loss of the head, then a new one and the same command"

_CLUSTER = """
import sys
import time
import psutil
import tune
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1])})
nodes = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[2]))]
print(cluster.address, flush=True)
held = {}
for line in sys.stdin:
    if line == "hold\\n":
        for node in nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            while not (found := [p for p in raylet.children() if "RemoteWorker" in p.name()]):
                time.sleep(0.02)
            held[node] = found
            for worker in found:
                worker.suspend()
    elif line == "node\\n":
        node = nodes.pop(0)
        cluster.remove_node(node, allow_graceful=False)
        for worker in held[node]:
            worker.kill()
    else:
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    print("done", flush=True)
"""


class Machines:
    """A cluster of Ray whose machines are all this one, in a process of its own."""

    def __init__(self, head_cpus: int, nodes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER, str(head_cpus), str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "RAY_health_check_period_ms": "500",
                "RAY_health_check_failure_threshold": "4",
                "RAY_health_check_initial_delay_ms": "0",
            },
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address

    def hold(self) -> None:
        """Have the workers of all nodes but the head stand still, once they are there."""
        self._ask("hold")

    def lose(self, what: str) -> None:
        """Lose a `node`, or the `head`, as if the plug were pulled."""
        self._ask(what)

    def _ask(self, what: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=180)


@pytest.fixture
def machines() -> Iterator[Callable[[int, int], Machines]]:
    made: list[Machines] = []

    def make(head_cpus: int, nodes: int) -> Machines:
        made.append(Machines(head_cpus, nodes))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.fault(_NODE, times=2)
def test_nodes_are_lost(
    quick: Path, tmp_path: Path, machines: Callable[[int, int], Machines], survived: Survived
) -> None:
    cluster = machines(1, 2)
    run = SmallRun(tmp_path, (*QUICK, "--address", cluster.address))
    run.start().wait_for_log("✓ data")
    cluster.hold()
    # The head's worker does everything but what the other two have begun.
    run.wait_for(lambda: len(list((tmp_path / "experts").glob("*/manifest.json"))) >= 6)
    for _ in range(2):
        cluster.lose("node")
    run.end()
    assert run.log().count("died while") == 2
    assert_same(tmp_path, quick)
    survived(_NODE, 2)


@pytest.mark.slow
@pytest.mark.fault(_HEAD)
def test_the_head_is_lost(
    quick: Path, tmp_path: Path, machines: Callable[[int, int], Machines], survived: Survived
) -> None:
    cluster = machines(2, 0)
    run = SmallRun(tmp_path, (*QUICK, "--address", cluster.address)).start()
    run.wait_for_log("✓ data")
    cluster.lose("head")
    output = run.end(1)  # before Ray ends it, with a page of its own
    sentence = (
        f"the head of the Ray cluster ({cluster.address}) is gone; start it again, and the same "
        f"command goes on from here"
    )
    assert f"error: {sentence}" in output
    assert f"ended by HeadLostError: {sentence}" in run.log()
    again = machines(2, 0)
    SmallRun(tmp_path, (*QUICK, "--address", again.address)).start().end()
    assert_same(tmp_path, quick)
    survived(_HEAD)
