"""A worker that only says where it is; its module imports next to nothing and starts fast."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

GIB = 2**30


class StubWorker:
    """On a GPU where Ray gave it one; what it says of itself is in a file of the run folder."""

    def __init__(self, threads: int, share: int = 1) -> None:
        self.threads, self.share = threads, share
        self.step = 0

    def introduce(self, folder: Path) -> Any:
        told = json.loads((folder / "introduction.json").read_text())
        gpus = ray.get_gpu_ids()
        told |= {"device": "RTX" if gpus else "CPU", "free_bytes": 20 * GIB if gpus else None}
        told["libraries"] = tuple((name, version) for name, version in told["libraries"])
        return SimpleNamespace(**told)

    def where(self) -> tuple[list[str], int]:
        time.sleep(0.3)
        return [str(gpu) for gpu in ray.get_gpu_ids()], self.threads

    def shares(self) -> int:
        time.sleep(0.3)
        return self.share

    def train(self, folder: Path) -> int:
        """Hangs at step 3 when it is done for the first time, and otherwise takes no time."""
        if not (folder / "hung").exists():
            (folder / "hung").touch()
            self.step = 3
            time.sleep(600)
        self.step = 5
        return self.step

    def progress(self) -> tuple[int, int]:
        return self.step, 5

    def peak(self) -> tuple[str, int]:
        return ("RTX", 4 * GIB) if ray.get_gpu_ids() else ("CPU", 0)
