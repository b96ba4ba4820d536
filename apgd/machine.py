"""What this machine can do: memory, and measured rates."""

import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_CGROUP_CACHE = Path("/sys/fs/cgroup/memory.stat")
_REPEATS = 5
_SQUARE = 1024
_VECTOR = 2**23


@dataclass(frozen=True)
class Rates:
    """Measured with torch, on the threads that it may use."""

    gemm_flops: float
    """Floating-point operations per second of a product of two 1024 x 1024 float32 matrices."""
    triad_bytes: float
    """Bytes per second moved by a = b + s·c on vectors far larger than the caches."""


def free_memory(device: torch.device) -> int:
    """Memory in bytes that can still be used: of a GPU, or of this machine or container."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        # What torch keeps for later use counts as used there.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = _CGROUP_LIMIT.read_text().strip(), int(_CGROUP_USED.read_text())
        stat = _CGROUP_CACHE.read_text() if _CGROUP_CACHE.exists() else ""
        found = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
        used -= int(found[1]) if found else 0  # files that were read; they make room when asked
    except (OSError, ValueError):  # no such control group here
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - used))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: a processor's has no type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    # The last is how cuBLAS and cuDNN say it, which get their memory past torch.
    full = ("out of memory", "can't allocate memory", "_status_alloc_failed")
    return isinstance(error, RuntimeError) and any(words in told for words in full)


def is_broken_gpu(error: BaseException) -> bool:
    """Whether an error means that a GPU does nothing more for this process.

    An illegal access or an error of its memory stays with the process: whatever it asks of the GPU
    then fails at once.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or str(error).startswith("CUDA error")


@cache
def measured_rates(device: torch.device) -> Rates:
    """Measure for about a fifth of a second; later calls remember."""
    square = torch.randn(_SQUARE, _SQUARE, device=device)
    product = torch.empty_like(square)
    b, c = torch.ones(_VECTOR, device=device), torch.ones(_VECTOR, device=device)
    a = torch.empty_like(b)
    gemm = _best_time(lambda: torch.mm(square, square, out=product), device)
    triad = _best_time(lambda: torch.add(b, c, alpha=2.0, out=a), device)
    return Rates(2 * _SQUARE**3 / gemm, 3 * 4 * _VECTOR / triad)


def _best_time(function: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def name_of(device: torch.device) -> str:
    """What the computing device is called, for example `AMD EPYC, 2 cores`."""
    if device.type == "cuda":
        name: str = torch.cuda.get_device_name(device)
        return name
    return f"{processor()}, {psutil.cpu_count()} cores"


def processor() -> str:
    """What this machine's processor is called."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
