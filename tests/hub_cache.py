"""Folders as the hub's clients leave them in their cache, made without a hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubCache:
    """A cache of the hub in a folder, with what was put into it; no network is ever asked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def snapshot(self, repo: str, kind: str = "model") -> Path:
        """The folder in which a repository's files lie, made where it is missing."""
        repository = self.root / f"{kind}s--{repo.replace('/', '--')}"
        folder = repository / "snapshots" / COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return folder


def offline_cache(root: Path, patch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache that this process's clients use, offline, until the patch is undone."""
    patch.setattr(constants, "HF_HUB_CACHE", str(root))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_HUB_CACHE", str(root))
    return HubCache(root)
