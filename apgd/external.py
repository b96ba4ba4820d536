"""Experts that were fine-tuned elsewhere: brought into the suite's own format, once."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apgd.checkpoints import read_metadata
from apgd.errors import DamagedError, InputError
from apgd.files import content_key, read_sealed, sha256_file, sha256_path, write_sealed
from apgd.finetune import Expert
from apgd.hub import check_hub_file
from apgd.locks import locked
from apgd.published import Family
from apgd.source import source_hash
from apgd.suites import Suite
from apgd.task_vectors import TaskVectors

OWN = "own"
"""Experts are fine-tuned here."""
PUBLISHED = "published"
"""Experts come from the model hub."""
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ForeignExperts:
    """Where a suite's experts come from, if not from fine-tuning here.

    Raises:
        InputError: where `source` is neither `published` nor a folder with an expert for every
            task, or the suite has no published experts.
    """

    suite: Suite
    source: str
    """`published`, or a folder that holds a file or folder of weights for every task."""

    def __post_init__(self) -> None:
        for task in self.suite.tasks:
            if self.source != PUBLISHED:
                self._in_folder(task.name)
            elif task.name not in self.suite.published_experts:
                raise InputError(
                    f"suite {self.suite.name} has no published expert for {task.name}; "
                    f"--experts own fine-tunes it"
                )

    @cached_property
    def _base_sha256(self) -> str:
        return sha256_file(self.suite.base_path())

    def _in_folder(self, task: str) -> Path:
        folder = Path(self.source)
        if not folder.is_dir():
            raise InputError(
                f"--experts must be {OWN}, {PUBLISHED} or a folder, but got {self.source!r}"
            )
        for name in (f"{task}.safetensors", task):
            if (folder / name).exists():
                return folder / name
        raise InputError(
            f"a folder of experts must hold {task}.safetensors, or a folder {task}, for every task "
            f"of suite {self.suite.name}, but {folder} does not"
        )

    def fetch(self, task: str, root: Path) -> Expert:
        """A task's expert below the folder of all experts, downloaded and converted if need be.

        Raises:
            InputError: where it cannot be had, is not an expert of this suite's model, or was
                damaged since.
        """
        published = self.source == PUBLISHED
        source = self.suite.published_expert(task) if published else self._in_folder(task)
        check_hub_file(source)
        kind = PUBLISHED if published else "folder"
        made_by = source_hash("apgd.external", "apgd.lora", "apgd.models", "apgd.suites")
        # The base completes experts that lack a projection, and gauges how far they are from it.
        key = content_key([sha256_path(source), self._base_sha256, made_by])
        folder = root / f"{self.suite.stored_as}-{_plain(task)}-{kind}-{key}"
        with locked(root / f".{folder.name}.lock"):  # two runs may want it at once
            if not (folder / _MANIFEST).exists():
                self._import(task, source, folder)
        found = read_sealed(folder / _MANIFEST)
        weights = folder / found["weights"]
        if sha256_path(weights) != found["sha256"]:
            raise DamagedError(
                f"{weights} must be what was converted from {found['origin']}, but was changed "
                f"since; delete {folder} to convert it again"
            )
        return Expert(weights, found["sha256"], found)

    def _import(self, task: str, source: Path, folder: Path) -> None:
        published = self.source == PUBLISHED
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.suite.import_expert(source, folder)
        manifest = {
            "origin": self.suite.published_experts[task] if published else str(source),
            "origin_sha256": sha256_path(source),
            "family": Family.TRANSFORMERS if published else _stated_family(source),
            "weights": weights.name,
            "sha256": sha256_path(weights),
            "tau_norm_ratio": _relative_norm(self.suite, weights),
        }
        write_sealed(folder / _MANIFEST, manifest)


def _relative_norm(suite: Suite, weights: Path) -> float:
    vectors = TaskVectors(suite.base_path(), {"expert": weights}, suite.is_merged, keep=False)
    return float(vectors.relative_norms()[0])


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _stated_family(source: Path) -> Family | None:
    """The family that `apgd convert --family` wrote into a file; None where nothing says it."""
    if source.suffix != ".safetensors" or not source.is_file():
        return None
    stated = read_metadata(source).get("family")
    return Family(str(stated)) if stated in list(Family) else None
