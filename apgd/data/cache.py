"""Where this machine keeps what it made or downloaded once."""

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of all caches: `$APGD_CACHE`, or `~/.cache/apgd`."""
    chosen = os.environ.get("APGD_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "apgd"
