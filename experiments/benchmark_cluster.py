"""How a merge spreads over workers: measured here, and calculated for a cluster.

First a whole ViT-B/32 is merged by one worker and by as many as this machine has CPUs, for real.
Then the durations of its layers are replayed (each worker sleeps as long as the layer took) on 1,
2, 4 and 8 workers, which shows what the scheduling costs where workers do not share two CPUs. Last,
a calculation of what merging a large language model would take on a cluster; it was not run.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from apgd import TaskVectors
from apgd.checkpoints import save_weights
from apgd.files import write_json
from apgd.machine import name_of
from apgd.merging import merge_vectors
from apgd.methods import methods
from apgd.methods._apgd import decomposition_cost
from apgd.projective import decompositions_at_once
from experiments.benchmark_merge import random_weights
from tune.cluster import Cluster, ray_session
from tune.planning.schedule import list_schedule, lower_bound
from tune.ray_executor import RayExecutor

_GB = 1e9
_COUNTS_BYTES = 8 * (2**15 + 2**16)  # of a layer and expert: both passes of the thresholds


@dataclass(frozen=True)
class Node:
    """What one machine of the calculated cluster is taken to be."""

    cores: int = 32
    core_flops: float = 8.0e10
    """Rate of float32 matrix products on one core."""
    triad_bytes: float = 2.0e11
    """Memory bandwidth."""
    read_bytes: float = 1.0e9
    """Bytes per second from the storage that all share, for each machine."""
    memory: float = 1.28e11
    threads_per_worker: int = 8


def main() -> None:
    """Measure, replay, calculate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=12, help="blocks of the model merged here")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--solver", default="exact", choices=["adam", "exact"])
    parser.add_argument("--nodes", type=int, default=16, help="machines in the calculation")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    console = Console(width=110)
    report = {
        "machine": name_of(torch.device("cpu")),
        "measured": _measured(options.blocks, options.experts, options.solver, console),
        "calculated": [
            _calculated(solver, 32, options.nodes, console) for solver in ("adam", "exact")
        ],
    }
    if options.out is not None:
        write_json(options.out, report)


def _measured(blocks: int, experts: int, solver: str, console: Console) -> dict[str, object]:
    method = methods["doge_ta"]
    params = method.parse({"solver": solver})
    with TemporaryDirectory() as folder, ray_session(address="local", cpus=8) as cluster:
        base, *tuned = _written(Path(folder), blocks, experts)
        cpus = min(8, torch.get_num_threads())
        real = {}
        merged = {}
        for workers in sorted({1, cpus}):
            with RayExecutor(replace(cluster, workers=workers, threads_per_worker=1)) as executor:
                named = {path.stem: path for path in tuned}
                vectors = TaskVectors(base, named, keep=False, executor=executor)
                started = time.perf_counter()
                merged[workers] = merge_vectors(method, params, vectors)
                real[workers] = time.perf_counter() - started
        same = all(torch.equal(merged[1][name], merged[cpus][name]) for name in merged[1])
        seconds = {layer.name: layer.seconds for layer in merged[1].summary.layers}
        order = vectors.largest_first()
        replayed = {
            workers: _replay(cluster, workers, [seconds[name] for name in order])
            for workers in (1, 2, 4, 8)
        }
    table = Table("workers", "merge", "layers replayed", "ideal", "share of the ideal", box=None)
    total = sum(seconds.values())
    for workers, (makespan, ideal) in replayed.items():
        table.add_row(
            str(workers), f"{real[workers]:.1f} s" if workers in real else "–",
            f"{makespan:.1f} s", f"{ideal:.1f} s", f"{100 * ideal / makespan:.0f} %",
        )  # fmt: skip
    entries = sum(tensor.numel() for tensor in merged[1].values())
    console.print(
        f"{len(order)} matrices, {entries / 1e6:.0f} M parameters, {experts} experts, solver "
        f"{solver}: {total:.1f} s of work; results of 1 and {cpus} workers are "
        f"{'the same bits' if same else 'DIFFERENT'}",
        highlight=False,
    )
    console.print(table)
    spans = {w: {"makespan": span, "ideal": ideal} for w, (span, ideal) in replayed.items()}
    return {
        "work_seconds": total, "same_bits": same, "merge_seconds": real, "replayed": spans,
    }  # fmt: skip


def _written(folder: Path, blocks: int, experts: int) -> list[Path]:
    """The base and the experts on disk, from where each worker reads them itself."""
    base, tuned = random_weights(768, blocks, experts)
    paths = []
    for name, state in ({"base": base} | tuned).items():
        paths.append(folder / f"{name}.safetensors")
        save_weights(paths[-1], state)
    return paths


def _sleep(seconds: list[float], _vectors: TaskVectors, index: int) -> None:
    time.sleep(seconds[index])


def _replay(cluster: Cluster, workers: int, seconds: list[float]) -> tuple[float, float]:
    """Makespan of the recorded durations, and the shortest there can be."""
    small = TaskVectors({"w": torch.zeros(1, 1)}, {"a": {"w": torch.ones(1, 1)}}, keep=False)
    with RayExecutor(replace(cluster, workers=workers, threads_per_worker=1)) as executor:
        indices = range(len(seconds))
        started = time.perf_counter()
        for _ in executor.map(partial(_sleep, seconds), small, indices, [1] * len(seconds)):
            pass
        makespan = time.perf_counter() - started
    return makespan, lower_bound(seconds, workers)


def _calculated(solver: str, experts: int, nodes: int, console: Console) -> dict[str, object]:
    """A model of 70 billion parameters (80 blocks of width 8192), from the method's own cost."""
    node, method = Node(), methods["doge_ta"]
    params = method.parse({"solver": solver})
    block = [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 2 + [(8192, 28672)]
    shapes = block * 80
    working = max(math.prod(shape) for shape in shapes) * 4 * (experts + 6)
    per_node = int(min(node.memory // working, node.cores // node.threads_per_worker))
    times = []
    for shape in shapes:
        whole = method.cost(shape, experts, params)
        decompositions = decomposition_cost(shape, experts).flops
        side_by_side = min(node.threads_per_worker, decompositions_at_once(min(shape)))
        times.append(
            decompositions / (node.core_flops * side_by_side)
            + (whole.flops - decompositions) / (node.core_flops * node.threads_per_worker)
            + whole.bytes / (node.triad_bytes / per_node)
        )
    computing = list_schedule(times, nodes * per_node).makespan
    entries = sum(math.prod(shape) for shape in shapes)
    read = 2 * entries * (experts + 1) * method.passes / nodes
    counts = len(shapes) * experts * _COUNTS_BYTES
    console.print(
        f"\nCalculated, not run: {entries / 1e9:.0f} billion parameters x {experts} experts "
        f"(bfloat16), solver {solver}, {nodes} machines of {node.cores} cores at "
        f"{node.core_flops / _GB:.0f} GFlop/s, {node.triad_bytes / _GB:.0f} GB/s, "
        f"{node.memory / _GB:.0f} GB, storage at {node.read_bytes / _GB:.0f} GB/s each:\n"
        f"  the largest layer needs {working / _GB:.0f} GB, so {per_node} workers of "
        f"{node.threads_per_worker} threads fit on a machine\n"
        f"  computing {_hours(computing)}, reading {_hours(read / node.read_bytes)} "
        f"({read / _GB:,.0f} GB per machine, every expert {method.passes} times), "
        f"{counts / _GB:.0f} GB of counts to the driver, {2 * entries / nodes / _GB:.1f} GB "
        f"written per machine",
        highlight=False,
    )
    return {"solver": solver, "compute_seconds": computing, "read_bytes_per_node": read,
            "read_seconds": read / node.read_bytes, "working_bytes": working,
            "workers_per_node": per_node, "counts_bytes": counts}  # fmt: skip


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    main()
