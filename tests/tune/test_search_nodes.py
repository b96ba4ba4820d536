"""A machine goes away in the middle of a search."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster as RayCluster

from tests.tune.small_search import (
    SmallRemoteWorker,
    fault,
    found_in,
    kept_in,
    make_run,
    run_here,
    said,
    search_with,
    small_study,
)
from tune.cluster import Cluster, ray_session
from tune.workers import pool as worker_pool
from tune.workers.pool import WorkerPool

STUDIES = [
    small_study("doge_ta", trials=10, published_params=(("iterations", 16),)),
    small_study("ties", seed=1, trials=6),
]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A head without CPUs and two machines of one CPU."""
    for name, value in (
        ("period_ms", "500"),
        ("failure_threshold", "3"),
        ("initial_delay_ms", "0"),
    ):
        monkeypatch.setitem(os.environ, f"RAY_health_check_{name}", value)
    store = {"object_store_memory": 100 * 2**20}
    simulated = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **store},
    )
    try:
        simulated.add_node(num_cpus=1, **store)
        simulated.add_node(num_cpus=1, **store)
        simulated.wait_for_nodes()
        yield simulated
    finally:
        simulated.shutdown()


@pytest.mark.slow
def test_a_machine_goes_away(
    nodes: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, folder = tmp_path / "here", tmp_path / "nodes"
    for path in (here, folder):
        path.mkdir()
        make_run(path)

    fault(folder, "0-6-0.hold")

    def remove() -> None:
        """Take away the machine that is in the middle of trial 6."""
        while not (held := list((folder / "run" / "faults").glob("*.held"))):
            time.sleep(0.01)
        (gone,) = (node for node in nodes.worker_nodes if node.node_id == held[0].stem)
        nodes.remove_node(gone, allow_graceful=False)

    remover = threading.Thread(target=remove, daemon=True)
    with pytest.MonkeyPatch.context() as patch, ray_session(address=nodes.address):
        patch.setattr(worker_pool, "RemoteWorker", SmallRemoteWorker)
        two = Cluster(nodes=3, cpus=2, gpus=0, joined=True, workers=2, threads_per_worker=1)
        remover.start()
        found: Any = found_in(search_with(WorkerPool(two, print), folder, STUDIES))
    remover.join(120)
    assert not remover.is_alive()
    told = said(folder)
    (line,) = (line for line in told if "died while judging" in line)
    assert "trial 6 of doge_ta/seed0" in line
    assert (found, kept_in(folder)) == (
        found_in(run_here(here, STUDIES, monkeypatch, bases=True)), kept_in(here),
    )  # fmt: skip
