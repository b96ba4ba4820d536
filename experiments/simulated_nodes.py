"""Ray nodes that are processes of this machine."""

import tune  # isort: skip  # noqa: F401 - sets what Ray reads when it is imported

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from ray.cluster_utils import Cluster

from tune.cluster import on_loopback

_FOLDER = "RAY_TMPDIR"
_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 80 * 2**20  # as little as Ray takes


@contextmanager
def _own_folder() -> Iterator[None]:
    before = os.environ.get(_FOLDER)
    with TemporaryDirectory(prefix="r") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before


@contextmanager
def simulated_nodes(count: int, *, cpus: int, gpus: int = 0) -> Iterator[str]:
    """So many nodes for the length of a `with` block; the address of the cluster.

    Args:
        count: nodes, of which the first is the head.
        cpus: CPUs that each says it has.
        gpus: GPUs that each says it has.
    """
    each = {
        "num_cpus": cpus, "num_gpus": gpus, "object_store_memory": _STORE_BYTES,
        "node_ip_address": _LOOPBACK,
    }  # fmt: skip
    # On loopback, because otherwise whoever connects looks for the head at the outer address; in a
    # folder of its own, because runs on this machine join the cluster that they find in Ray's.
    with on_loopback(), _own_folder():
        simulated = Cluster(
            initialize_head=True, head_node_args={**each, "include_dashboard": False}
        )
        try:
            for _ in range(count - 1):
                simulated.add_node(**each)
            simulated.wait_for_nodes()
            yield simulated.address
        finally:
            simulated.shutdown()
