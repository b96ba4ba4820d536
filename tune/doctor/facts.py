"""What a machine is like, as it sees itself; nothing is judged here."""

import os
import platform
import resource
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tune.doctor.downloads import DownloadFacts, look_at_downloads
from tune.doctor.folders import FolderFacts, Probe, look_into
from tune.doctor.gpus import GpuFacts, look_at_gpus
from tune.libraries import LIBRARIES

PACKAGES = ("apgd", *LIBRARIES, "optuna", "mlflow")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store


@dataclass(frozen=True, kw_only=True)
class Software:
    """What runs there."""

    python: str
    packages: tuple[tuple[str, str | None], ...]
    """Names and versions; None for one that is not installed."""
    code: str | None
    """Hash of the source of apgd and tune; None where it does not import."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one machine is like."""

    software: Software
    gpus: GpuFacts
    cpus: int
    memory_bytes: int
    """Memory of the machine or container."""
    free_bytes: int
    """Memory that can still be used."""
    shared_memory_bytes: int | None
    """Size of /dev/shm; None where there is none."""
    open_files: int
    """How many files a process may have open."""
    folders: tuple[FolderFacts, ...]
    cache: str
    """Where data and converted models are kept."""
    cache_free_bytes: int
    downloads: DownloadFacts
    tokens: bool
    """Whether Ray asks those who connect for a token."""


@dataclass(frozen=True)
class Question:
    """What is asked of every machine."""

    suite: str
    probes: tuple[Probe, ...]


def look(question: Question, name: str) -> Facts:
    """Look at this machine.

    Args:
        question: what for.
        name: what this machine is called.
    """
    import psutil
    import torch

    from apgd.data.cache import cache_root
    from apgd.machine import free_memory

    cache = cache_root()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return Facts(
        software=software(),
        gpus=look_at_gpus(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=int(psutil.virtual_memory().total),
        free_bytes=free_memory(torch.device("cpu")),
        shared_memory_bytes=(
            shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.exists() else None
        ),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        folders=tuple(look_into(probe, name) for probe in question.probes if not probe.problem),
        cache=str(cache),
        cache_free_bytes=shutil.disk_usage(there).free,
        downloads=look_at_downloads(question.suite),
        tokens=_tokens(),
    )


def software() -> Software:
    """Versions of Python and of the packages that results depend on."""
    try:
        import tune.workers.process  # noqa: F401 - to see that all is there that a worker needs
        from tune.workers.introductions import own_code

        code = own_code()
    except ImportError:
        code = None
    return Software(
        python=platform.python_version(),
        packages=tuple((package, _version(package)) for package in PACKAGES),
        code=code,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tokens() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())
