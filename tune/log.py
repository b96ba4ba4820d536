"""A run's log: a line for each thing that is said, with the time."""

from datetime import UTC, datetime
from pathlib import Path

LOG_FILE = "run.log"


def append(log: Path, text: str) -> None:
    """Put a line into a log.

    Raises:
        OSError: where it cannot be written.
    """
    line = f"{datetime.now(UTC).isoformat(timespec='milliseconds')}  {' '.join(text.split())}\n"
    with log.open("a", encoding="utf-8") as file:
        file.write(line)
