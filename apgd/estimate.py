"""What a merge will need, before it starts: memory, disk, time."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from apgd.cost import Cost
from apgd.errors import InputError
from apgd.execution import SPARE_BYTES, Here
from apgd.machine import free_memory, measured_rates
from apgd.methods import Method, MethodParams
from apgd.task_vectors import TaskVectors

_GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What a merge needs, counted from the shapes."""

    parameters: int
    """Entries of the model."""
    merged: int
    """Those of them that are merged."""
    matrices: int
    """Matrices that are merged."""
    read_bytes: int
    """Bytes read from base and experts, over all passes."""
    written_bytes: int
    """Size of the merged model."""
    largest: str
    """The merged parameter that needs most memory."""
    largest_bytes: int
    """Working memory that it needs, N + 6 times its size in float32 for most methods."""
    working_bytes: int
    """Working memory of the merge, on the computing device."""
    result_bytes: int
    """Memory for the result, or for the shard of it that is being made."""
    in_memory: bool
    """Whether the result is kept in memory."""

    def __str__(self) -> str:
        return (
            f"{self.merged / 1e6:,.1f} M of {self.parameters / 1e6:,.1f} M parameters, in "
            f"{self.matrices} matrices: {(self.working_bytes + self.result_bytes) / _GIB:.1f} GiB "
            f"of memory, {self.read_bytes / _GIB:.1f} GiB to read, "
            f"{self.written_bytes / _GIB:.1f} GiB to write"
        )


def needs(method: Method, vectors: TaskVectors, *, shard_bytes: int | None) -> Needs:
    """What this merge needs; `shard_bytes` is None where the result is kept in memory."""
    base = vectors.base
    sizes = {name: math.prod(base.shape(name)) for name in base.names()}
    total = sum(size * base.dtype(name).itemsize for name, size in sizes.items())
    one_pass = sum(
        sizes[name] * source.dtype(name).itemsize
        for source in vectors.sources.values()
        for name in vectors.names
    )
    merged = sum(sizes[name] for name in vectors.names)
    single = max(size * base.dtype(name).itemsize for name, size in sizes.items())
    largest_shard = max(min(shard_bytes or 0, total), single)
    largest = max(vectors.names, key=lambda name: method.working_bytes(vectors, name))
    largest_bytes = method.working_bytes(vectors, largest)
    working = largest_bytes
    if isinstance(vectors.executor, Here):
        working = max(largest_bytes, vectors.executor.memory or largest_bytes + SPARE_BYTES)
    return Needs(
        parameters=sum(sizes.values()),
        merged=merged,
        matrices=len(vectors.names),
        read_bytes=method.passes * one_pass + total,
        written_bytes=total,
        in_memory=shard_bytes is None,
        largest=largest,
        largest_bytes=largest_bytes,
        working_bytes=working,
        # A shard is held once as tensors and once as bytes to be written.
        result_bytes=total + 4 * merged if shard_bytes is None else 2 * largest_shard,
    )


def expected_seconds(method: Method, params: MethodParams, vectors: TaskVectors) -> float:
    """A calculation from the work of each matrix and this machine's measured rates.

    The disk is not in it. Measuring takes a fifth of a second, once in a process.
    """
    rates = measured_rates(vectors.device)
    shapes = [vectors.shape(name) for name in vectors.names]
    work = sum((method.cost((m, n), len(vectors), params) for m, n in shapes), start=Cost())
    return work.flops / rates.gemm_flops + work.bytes / rates.triad_bytes


def check_memory(found: Needs, vectors: TaskVectors) -> None:
    """Raise InputError where the merge cannot fit into this machine's free memory."""
    if not isinstance(vectors.executor, Here):
        return  # others compute, with their own memory
    device = vectors.device
    free = free_memory(device)
    if found.working_bytes > free:
        shape = " x ".join(map(str, vectors.shape(found.largest)))
        raise InputError(
            f"working memory of {found.working_bytes / _GIB:.1f} GiB is needed, "
            f"{found.largest_bytes / _GIB:.1f} GiB of it for {found.largest} ({shape}) with "
            f"{len(vectors)} experts, but {device} has {free / _GIB:.1f} GiB free; "
            + _remedy(found, device.type, free)
        )
    host = free if device.type == "cpu" else free_memory(type(device)("cpu"))
    wanted = found.result_bytes + (found.working_bytes if device.type == "cpu" else 0)
    if wanted > host:
        if found.in_memory:
            what = "the result"
            remedy = (
                "write it to a folder instead, which keeps one shard in memory "
                "(--out FOLDER, or apgd.merge_files)"
            )
        else:
            what, remedy = "a shard of the result", "make shards smaller (--shard-size)"
        raise InputError(
            f"{wanted / _GIB:.1f} GiB are needed to merge with {what} in memory, but "
            f"{host / _GIB:.1f} GiB are free; {remedy}"
        )


def _remedy(found: Needs, device: str, free: int) -> str:
    if device != "cpu":
        return "merge on the CPU (--device cpu)"
    if found.largest_bytes <= free:
        return "allow less for matrices side by side (--memory)"
    return "merge fewer experts at a time (--expert), or less of the model (--suite, select)"


def check_disk(written_bytes: int, out: Path) -> None:
    """Raise InputError where the result does not fit on the disk of `out`."""
    folder = next(parent for parent in (out, *out.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if written_bytes > free:
        raise InputError(
            f"the merged model takes {written_bytes / _GIB:.1f} GiB on disk, but {folder} has "
            f"{free / _GIB:.1f} GiB free; write it elsewhere (--out)"
        )
