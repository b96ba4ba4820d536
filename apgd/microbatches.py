"""How much of a batch goes through a model at once: as much as the device's memory allows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from apgd.data.cache import cache_root
from apgd.files import content_key, write_json
from apgd.suites import FinetuneSettings


class MicroBatches:
    """A number of examples, halved whenever they did not fit, and remembered in a file.

    Args:
        batch_size: examples of a whole batch, which is tried first.
        memory: the file; nothing is remembered where None.
    """

    def __init__(self, batch_size: int, memory: Path | None = None) -> None:
        self.size = batch_size
        """Examples that go through the model at once."""
        self._memory = memory
        if memory is not None and memory.exists():
            self.size = min(batch_size, _read(memory) or batch_size)

    def parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """A batch in parts of at most `size` rows."""
        for start in range(0, len(rows), self.size):
            yield rows[start : start + self.size]

    def halve(self) -> None:
        """Take half as many from now on (at least one), and next time."""
        self.size = max(1, self.size // 2)
        if self._memory is not None:
            write_json(self._memory, {"size": self.size})


def micro_batches(
    suite: str, model: nn.Module, settings: FinetuneSettings, device: str
) -> MicroBatches:
    """What is known of this model, its settings and this kind of GPU; all of a batch on a CPU."""
    if torch.device(device).type != "cuda":
        return MicroBatches(settings.batch_size)
    properties = torch.cuda.get_device_properties(torch.device(device))
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad == r) for r in (0, 1)]
    key = content_key(
        [suite, type(model).__name__, sizes, settings.batch_size, settings.gradient_checkpointing,
         properties.name, properties.total_memory]
    )  # fmt: skip
    return MicroBatches(settings.batch_size, cache_root() / "micro_batches" / f"{key}.json")


def _read(path: Path) -> int | None:
    """The size in a file, None where it holds none."""
    try:
        size = json.loads(path.read_text(encoding="utf-8"))["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and size > 0 else None
