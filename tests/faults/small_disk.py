"""A disk of a few MiB in a mount namespace of its own, which can really be full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FILLER = "filler"


class SmallDisk:
    """A tmpfs that processes of its namespace see at `inside`, and this one at `folder`."""

    def __init__(self, process: subprocess.Popen[str], inside: Path) -> None:
        self.within = (
            *("nsenter", "--mount", "--target", str(process.pid)),
            *("sh", "-c", 'cd "$0" && exec "$@"', str(inside)),
        )
        """A command put before others that has them run there."""
        self.folder = Path(f"/proc/{process.pid}/root{inside}")

    def fill(self, free: int) -> None:
        """Fill it, until so many bytes are free."""
        with (self.folder / _FILLER).open("ab") as file:
            while (more := self.free() - free) > 0:
                with suppress(OSError):  # somebody else took it meanwhile
                    os.posix_fallocate(file.fileno(), file.tell(), more)
                file.seek(0, os.SEEK_END)

    def free(self) -> int:
        """Free bytes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.folder / _FILLER).unlink()


@contextmanager
def small_disk(inside: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """A disk of this size; the test is skipped where one may not be mounted."""
    inside.mkdir()
    mount = f"mount -t tmpfs -o size={mebibytes}m tmpfs {inside} && echo ready && read _"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said != "ready":
            pytest.skip(f"NO FULL DISK WAS TRIED: a disk cannot be mounted here ({said})")
        yield SmallDisk(process, inside)
    finally:
        process.kill()
        process.wait()
