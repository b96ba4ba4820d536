"""What a healthy machine looks like to the doctor, for tests to change."""

from dataclasses import replace

from tune.doctor.downloads import DownloadFacts
from tune.doctor.facts import Facts, Software
from tune.doctor.folders import FolderFacts
from tune.doctor.gpus import Gpu, GpuFacts
from tune.doctor.needs import Needs

GB = 10**9


def needs(**changes: object) -> Needs:
    of = Needs(
        suite="small",
        experts_bytes=5 * GB,
        cache_bytes=20 * GB,
        memory_bytes=8 * GB,
        wants_gpu=False,
        fits=lambda free: (free >= 10 * GB, "fine-tuning takes 10 GB"),
    )
    return replace(of, **changes)


def software(**changes: object) -> Software:
    of = Software(python="3.12.1", packages=(("apgd", "0.1.0"), ("ray", "2.60.0")), code="c0de")
    return replace(of, **changes)


def gpus(count: int = 1, free: int = 23 * GB, **changes: object) -> GpuFacts:
    listed = tuple(Gpu("NVIDIA A10G", free, 24 * GB, "570.1") for _ in range(count))
    return replace(GpuFacts(gpus=listed, build="13.0", usable=count), **changes)


def folder(**changes: object) -> FolderFacts:
    of = FolderFacts(what="run folder", path="/shared/runs", sees=True, free_bytes=GB)
    return replace(of, **changes)


def facts(**changes: object) -> Facts:
    of = Facts(
        software=software(),
        gpus=GpuFacts(),
        cpus=8,
        memory_bytes=32 * GB,
        free_bytes=30 * GB,
        shared_memory_bytes=8 * GB,
        open_files=65536,
        folders=(folder(), folder(what="experts folder")),
        cache="/home/x/.cache/apgd",
        cache_free_bytes=50 * GB,
        downloads=DownloadFacts(),
        tokens=True,
    )
    return replace(of, **changes)
