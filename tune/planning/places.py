"""Which machines a plan is for: described ones, a cluster that runs, or this machine."""

from collections import Counter

import ray
import torch
from ray._private.utils import get_num_cpus

from apgd.machine import processor
from tune.cluster import cluster_to_join, plural, ray_session
from tune.experiment import Experiment
from tune.planning.machines import Machines, described, kind_of


def machines_for(experiment: Experiment) -> Machines:
    """The machines of a plan; a running cluster is joined for a moment to read its nodes.

    Raises:
        InputError: where a description is none, or no cluster answers at an address.
    """
    if experiment.plan_for is not None:
        return described(experiment.plan_for)
    address = cluster_to_join(experiment.address)
    if address is not None:
        return _running(address)
    return _here(experiment.cpus)


def _here(cpus: int | None) -> Machines:
    """This machine."""
    count = cpus or int(get_num_cpus())
    gpus = torch.cuda.device_count()
    name = torch.cuda.get_device_name() if gpus else processor()
    free = torch.cuda.mem_get_info()[0] if gpus else None
    return Machines(1, kind_of(name, count), gpus, count, None, False, f"here ({name})", name, free)


def _running(address: str) -> Machines:
    """A cluster's machines; of several kinds, those that there are most of."""
    with ray_session(address=address):
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return from_nodes([node["Resources"] for node in nodes], address)


def from_nodes(resources: list[dict[str, float]], address: str) -> Machines:
    """Machines from what Ray says of its nodes.

    Args:
        resources: of every node, as Ray counts them.
        address: of the cluster.
    """
    working = [of for of in resources if of.get("GPU", 0)] or resources
    kinds = Counter(
        (int(of.get("GPU", 0)), int(of.get("CPU", 0)), _accelerator(of)) for of in working
    )
    (gpus, cpus, name), count = kinds.most_common(1)[0]
    told = f"the cluster at {address}, {plural(len(resources), 'node')}"
    if len(kinds) > 1:
        told += f", of which {len(working) - count} of other kinds count like these"
    cpus = max(1, cpus)
    name = name or ("unknown GPU" if gpus else "cpu")
    device = kind_of(name if name != "unknown GPU" else "nvidia", cpus)
    return Machines(len(working), device, gpus, cpus, None, True, told, name)


def _accelerator(resources: dict[str, float]) -> str:
    """What Ray calls a node's GPUs."""
    prefix = "accelerator_type:"
    found = [name.removeprefix(prefix) for name in resources if name.startswith(prefix)]
    return found[0] if found else ""
