"""What an exported folder holds, as its card tells it."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apgd.models.clip_layouts import Library


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a folder holds."""

    library: Library
    """Who loads it."""
    kind: str
    """The class that loads it, or the architecture."""
    loading: str
    """Python that loads it, with PATH for the folder's place."""
    tags: tuple[str, ...]
    """The hub's tags for such a model."""
    pipeline: str | None
    """The hub's name for what it does; None where it is a part of a model."""
    base_model: str | None
    """Repository of the base on the hub, where its sizes or its configuration tell it."""
    activation: str | None
    """The activation that it must be run with, where libraries could take another one."""
    parameters: int
    """How many numbers it has."""
    notes: tuple[str, ...] = ()
    """Sentences about what is particular to it."""


def copy_companions(base: Path | None, out: Path, names: Iterable[str]) -> set[str]:
    """Copy those of the named files that the base's folder has; never code. The ones copied."""
    copied = set()
    if base is not None and base.is_dir():
        for name in names:
            if (base / name).is_file():
                shutil.copyfile(base / name, out / name)
                copied.add(name)
    return copied


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
"""What transformers saves of a tokenizer."""
