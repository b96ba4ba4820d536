"""Whether a folder serves all machines: each sees it, writes there, is locked out, and can rename.

The asking process puts a file into the folder and holds a lock on another one; whoever looks must
see the first, must not get the lock, and leaves a file of its own for the asking process to see.
"""

import fcntl
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apgd.errors import InputError
from apgd.files import PROBE, check_writable

_SEEN_SECONDS = 3.0
"""A network file system may show a new file a little later."""
_LOCK_SECONDS = 5.0
LONGEST_SECONDS = _SEEN_SECONDS + 2 * _LOCK_SECONDS
"""What a look into a folder takes at most, where its disk answers."""
_RENAMES = 50
_HELD, _TAKEN = "held", "taken"
_TRY_LOCK = f"""
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("{_TAKEN}")
    except BlockingIOError:
        print("{_HELD}")
    except OSError as error:
        print(error.strerror)
"""


@dataclass(frozen=True)
class Probe:
    """What was put into a folder for others to see."""

    what: str
    """What the folder is for, for example `run folder`."""
    path: Path
    token: str
    problem: str | None = None
    """Why nothing could be put there."""

    @property
    def file(self) -> Path:
        """Holds the token."""
        return self.path / f"{PROBE}{self.token}"

    @property
    def lock(self) -> Path:
        """Is locked by the asking process."""
        return self.path / f"{PROBE}{self.token}-lock"

    def answer(self, name: str) -> Path:
        """What the machine called `name` writes."""
        return self.path / f"{PROBE}{self.token}-of-{name}"


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """A folder as one machine has it."""

    what: str
    path: str
    sees: bool
    """Whether the asking process's file is there."""
    problem: str | None = None
    """Why no file could be written."""
    lock: str | None = None
    """None where a lock keeps others out, or else what is wrong with it."""
    renames: str | None = None
    """None where a rename replaces a file at once, or else what was seen instead."""
    free_bytes: int | None = None


@contextmanager
def laid(what: str, path: Path) -> Iterator[Probe]:
    """Put a probe into a folder for the length of a `with` block; what is left of it is removed.

    The folder is made where it is missing, and removed afterwards where it was.
    """
    path = path.absolute()
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    probe = Probe(what, path, uuid.uuid4().hex)
    with ExitStack() as stack:
        try:
            check_writable(path, f"the {what}")
            stack.callback(_clear, probe, made)
            probe.file.write_text(probe.token)
            lock = stack.enter_context(probe.lock.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (InputError, OSError) as error:
            cause = error.__cause__ if isinstance(error, InputError) else error
            reason = getattr(cause, "strerror", None) or str(error)
            probe = Probe(what, path, probe.token, reason)
        yield probe


def _clear(probe: Probe, made: list[Path]) -> None:
    for file in probe.path.glob(f"{PROBE}{probe.token}*"):
        file.unlink(missing_ok=True)
    for folder in made:  # the innermost first
        try:
            folder.rmdir()
        except OSError:  # somebody uses it by now
            return


def look_into(probe: Probe, name: str) -> FolderFacts:
    """Look for a probe from the machine called `name`."""
    what, path = probe.what, str(probe.path)
    if not _appears(probe.file):
        return FolderFacts(what=what, path=path, sees=False)
    free = shutil.disk_usage(probe.path).free
    try:
        probe.answer(name).write_text(probe.token)
        renames = _try_renames(probe.path / f"{PROBE}{probe.token}-renamed-by-{name}")
    except OSError as error:
        return FolderFacts(
            what=what, path=path, sees=True, problem=error.strerror or repr(error), free_bytes=free
        )
    return FolderFacts(
        what=what, path=path, sees=True, lock=_try_lock(probe.lock), renames=renames,
        free_bytes=free,
    )  # fmt: skip


def shows(probe: Probe, name: str) -> bool:
    """Whether what the machine called `name` wrote can be seen here."""
    return _appears(probe.answer(name))


def _appears(file: Path) -> bool:
    until = time.monotonic() + _SEEN_SECONDS
    while not file.exists():
        if not file.parent.exists() or time.monotonic() > until:
            return False
        list(file.parent.iterdir())  # makes a network file system ask its server
        time.sleep(0.1)
    return True


def _try_lock(file: Path) -> str | None:
    """Whether a lock that is held keeps another process out; what is wrong, where it does not."""
    try:
        done = subprocess.run(  # noqa: S603 - this program's own words
            [sys.executable, "-I", "-S", "-c", _TRY_LOCK, str(file)],
            capture_output=True, text=True, timeout=_LOCK_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"asking for a lock takes over {_LOCK_SECONDS:.0f} s"
    said = (done.stdout or done.stderr).strip().splitlines()[-1:]
    if said == [_HELD]:
        return None
    if said == [_TAKEN]:
        return "a lock does not keep other machines out"
    return f"locks do not work there ({' '.join(said) or 'no answer'})"


def _try_renames(file: Path) -> str | None:
    """Replace a file again and again while it is read; what a reader saw that it should not."""
    versions = [letter * 4096 for letter in "ab"]
    file.write_text(versions[0])
    seen: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if file.read_text() not in versions:
                    seen.append("a file of which only a part was there")
            except FileNotFoundError:
                seen.append("a moment without the file")
            except OSError as error:
                seen.append(error.strerror or repr(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    beside = file.with_name(f"{file.name}-new")
    try:
        for number in range(_RENAMES):
            beside.write_text(versions[number % 2])
            beside.replace(file)
    finally:
        done.set()
        reader.join(_LOCK_SECONDS)
        file.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    return seen[0] if seen else None
