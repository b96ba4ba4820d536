"""Whether a suite's downloads are there, or can be had."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass

_ANSWER_SECONDS = 5.0
_BASE_SECONDS = 30.0
LONGEST_SECONDS = 2 * _ANSWER_SECONDS + _BASE_SECONDS
"""What a look takes at most."""
_LOAD_BASE = "import sys; from apgd.suites import suites; suites[sys.argv[1]].base_path()"


@dataclass(frozen=True, kw_only=True)
class DownloadFacts:
    """What a suite needs from the model hub, and whether the hub answers."""

    needed: int = 0
    """Data sets that the suite downloads."""
    lacking: tuple[str, ...] = ()
    """Tasks whose data are not ready on this machine."""
    offline: bool = False
    """Whether HF_HUB_OFFLINE forbids to ask."""
    unreachable: str | None = None
    """Why the hub cannot be reached, where it cannot."""
    base_there: bool = True
    """Whether the base model loads without the hub; looked at only where the hub does not answer.
    """


def look_at_downloads(name: str) -> DownloadFacts:
    """Look at what the suite `name` needs; the hub is asked only where it needs something."""
    from apgd.data import Split
    from apgd.suites import suites

    suite = suites[name]
    datasets = suite.datasets()
    if not datasets:
        return DownloadFacts()
    lacking = tuple(task for task in datasets if not suite.has_examples(task, Split.TEST))
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    unreachable = None if offline else _unreachable(constants.ENDPOINT)
    there = (not offline and unreachable is None) or _loads_offline(name)
    return DownloadFacts(
        needed=len(datasets),
        lacking=lacking,
        offline=offline,
        unreachable=unreachable,
        base_there=there,
    )


def _unreachable(address: str) -> str | None:
    """Why nobody answers at an address; None where somebody does."""
    from huggingface_hub import get_session

    said: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(address, timeout=_ANSWER_SECONDS).status_code
            said.append(f"it answers with status {status}" if status >= 500 else None)
        except Exception as error:
            said.append((str(error).splitlines() or [type(error).__name__])[0])

    # A look-up of the name alone may take longer than the time-out of the connection.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * _ANSWER_SECONDS)
    return said[0] if said else f"no answer within {2 * _ANSWER_SECONDS:.0f} s"


def _loads_offline(name: str) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - this program's own words
            [sys.executable, "-c", _LOAD_BASE, name],
            capture_output=True, timeout=_BASE_SECONDS, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
