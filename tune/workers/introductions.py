"""What a worker says of itself before it gets work, and what the driver checks of that."""

import platform
from dataclasses import dataclass
from pathlib import Path

from apgd.errors import InputError
from apgd.files import content_key
from apgd.source import library_versions, source_hash
from tune.libraries import LIBRARIES


@dataclass(frozen=True)
class Introduction:
    """Where a worker is, and what it sees from there."""

    machine: str
    device: str
    free_bytes: int | None
    """Free memory of its GPU; None on a CPU."""
    code: str
    """Hash of the source of apgd and tune that it runs."""
    libraries: tuple[tuple[str, str], ...]
    """Names and versions of Python and of the libraries that results depend on."""
    run_id: str | None
    """Identifier of the run folder as seen from there; None where it sees none."""


def own_code() -> str:
    """Hash of the source of apgd and tune that this process runs."""
    return source_hash("apgd", "apgd.methods", "tune")


def own_libraries() -> tuple[tuple[str, str], ...]:
    """Names and versions of Python and of the libraries that results depend on."""
    return (("python", platform.python_version()), *library_versions(*LIBRARIES))


def own_identity() -> str:
    """Hash of code and libraries, which is the same on all machines of a run."""
    return content_key([own_code(), own_libraries()])


def check_introduction(
    worker: Introduction, folder: Path, expected_run: str, needed_bytes: int
) -> None:
    """Raise InputError unless a worker can do its work.

    Args:
        worker: what it said of itself.
        folder: the run folder.
        expected_run: the run folder's identifier.
        needed_bytes: free memory that its GPU must have.
    """
    if worker.run_id != expected_run:
        raise InputError(
            f"the run folder must be on storage that all machines share, but "
            f"{worker.machine} does not see {folder}"
        )
    if worker.code != own_code():
        raise InputError(
            f"all machines must run the same code, but {worker.machine} has {worker.code} "
            f"and the driver {own_code()}; bring it up to date with `ray up`"
        )
    theirs = dict(worker.libraries)
    for library, version in own_libraries():
        if theirs.get(library) != version:
            raise InputError(
                f"all machines must have the same libraries, but {worker.machine} has {library} "
                f"{theirs.get(library)} and the driver {version}; bring it up to date with `ray up`"
            )
    if worker.free_bytes is not None and worker.free_bytes < needed_bytes:
        raise InputError(
            f"a worker that scores needs about {needed_bytes / 2**30:.1f} GiB of GPU memory, but "
            f"{worker.device} of {worker.machine} has {worker.free_bytes / 2**30:.1f} GiB free; "
            f"end what uses it (`nvidia-smi`), or leave the machine out"
        )
