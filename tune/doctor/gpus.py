"""The GPUs of this machine, as the driver and as torch see them.

Both are asked in processes of their own: a broken GPU can hang whoever asks, and CUDA keeps memory
of a GPU for as long as the process that used it lives.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

_QUERY = "name,memory.free,memory.total,driver_version"
DRIVER_SECONDS = 15.0
TORCH_SECONDS = 30.0
"""Less together than a node has for all it looks at, so that its row says what hangs."""
_TRY_TORCH = """
import json, torch
found = {"build": torch.version.cuda or torch.version.hip, "usable": 0, "problem": None}
try:
    for index in range(torch.cuda.device_count()):
        matrix = torch.eye(8, device=f"cuda:{index}")
        found["usable"] += int((matrix @ matrix).sum().item() == 8)
    if not found["usable"]:
        torch.zeros(1, device="cuda")
except Exception as error:
    found["problem"] = (str(error).splitlines() or [repr(error)])[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver describes it."""

    name: str
    free_bytes: int
    total_bytes: int
    driver: str
    """Version of the driver."""


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """The GPUs of a machine."""

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None
    """Why the driver could not be asked, where there is one."""
    build: str | None = None
    """The version of CUDA that torch was built for; None where torch is for CPUs."""
    usable: int = 0
    """On how many of them torch computes right."""
    torch_problem: str | None = None


def look_at_gpus() -> GpuFacts:
    """Ask the driver, and where it has GPUs also torch."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        listed = _output(asked, DRIVER_SECONDS)
    except FileNotFoundError:
        return GpuFacts()
    except RuntimeError as error:
        return GpuFacts(problem=str(error))
    gpus = parse_gpus(listed)
    if not gpus:
        return GpuFacts()
    try:
        tried = _output([sys.executable, "-c", _TRY_TORCH], TORCH_SECONDS)
        found = json.loads(tried.splitlines()[-1])
    except (RuntimeError, IndexError, ValueError) as error:
        return GpuFacts(gpus=gpus, torch_problem=str(error))
    return GpuFacts(
        gpus=gpus,
        build=found["build"],
        usable=found["usable"],
        torch_problem=found["problem"],
    )


def parse_gpus(listed: str) -> tuple[Gpu, ...]:
    """The GPUs that `nvidia-smi` lists, a line each; memory that it does not know counts as 0."""
    found = []
    for line in listed.splitlines():
        name, free, total, driver = (part.strip() for part in line.rsplit(",", 3))
        found.append(Gpu(name, _bytes(free), _bytes(total), driver))
    return tuple(found)


def _bytes(mebibytes: str) -> int:
    return int(mebibytes) * 2**20 if mebibytes.isdigit() else 0


def _output(command: list[str], seconds: float) -> str:
    """What a command prints.

    Raises:
        FileNotFoundError: where there is no such program.
        RuntimeError: where it fails or takes too long; what it said last.
    """
    process = subprocess.Popen(  # noqa: S603 - fixed commands
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # its end is not waited for: a driver that hangs may hold it for good
        raise RuntimeError(f"{command[0]} did not answer within {seconds:.0f} s") from None
    if process.returncode:
        said = (out + err).strip().splitlines()
        raise RuntimeError(said[-1] if said else f"{command[0]} ended with {process.returncode}")
    return out
