"""Machines are lost: a node's work is begun again elsewhere, and without the head all ends."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.small_run import QUICK, SmallRun, assert_same

Survived = Callable[..., None]
_NODE = "loss of a worker node"
_HEAD = "loss of the head, then a new one and the same command"

_CLUSTER = """
import sys
import tune
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1])})
nodes = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[2]))]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "node\\n":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    else:
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    print("gone", flush=True)
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

    def lose(self, what: str) -> None:
        """Lose a `node`, or the `head`, as if the plug were pulled."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "gone\n"

    def close(self) -> None:
        self._process.communicate(timeout=60)


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
    run.start().wait_for(lambda: bool(list((tmp_path / "experts").glob("*/manifest.json"))))
    cluster.lose("node")
    run.wait_for(lambda: bool(list((tmp_path / "run").glob("records/evaluation/*.json"))))
    cluster.lose("node")
    run.end()
    assert "died while" in run.log()
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
    began = time.monotonic()
    cluster.lose("head")
    output = run.end(1)
    assert time.monotonic() - began < 60
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
