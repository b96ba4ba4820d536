"""Published scores of the paper's suites, to stand beside a run's own.

These are facts from documents, in percent. Several families of fine-tuned experts are in use under
the same model names; their baselines differ, so rows of one are never compared with rows of
another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

__all__ = [
    "IN_DOMAIN",
    "TOLERANCE",
    "Confidence",
    "Family",
    "PublishedRow",
    "published_rows",
    "task_title",
]

TOLERANCE = 1.0
"""Percentage points within which a published score counts as reproduced by default."""
IN_DOMAIN = "in-domain"
"""The protocol in which all of a suite's tasks are merged and tested."""


class Family(StrEnum):
    """Whose fine-tuned experts were merged."""

    OPENCLIP = "openclip"
    """Fine-tuned with OpenCLIP: the original ones (Ilharco et al.), and those trained here."""
    TALL = "tall"
    """The OpenCLIP ones of the 20-task set, in the version whose DTD test images overlap the
    training split; EMNIST means digits there."""
    TRANSFORMERS = "transformers"
    """Those that FusionBench trained anew and put on the model hub."""
    NOT_STATED = "not stated"
    """The document does not say."""


class Confidence(StrEnum):
    """How a row was found."""

    READ = "read"
    """Its values are printed in the document."""
    DERIVED = "derived"
    """Its values, or what they belong to, follow from what documents say; `note` says how."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One method's published scores, in percent."""

    suite: str
    """Name of the suite whose tasks and model these are."""
    method: str
    """Name of the method; those that exist here have the same name here, except for `pretrained`,
    `individual` (each task's own expert) and `simple_average`."""
    title: str
    """Name for people."""
    family: Family
    """Whose experts."""
    protocol: str
    """`in-domain` (all tasks merged and tested), `unseen` (two more tested), or the name of the
    corruption of all test images."""
    per_task: Mapping[str, float] | None
    """Score by task; None where only an average is known."""
    average: float | None
    """Average over the tasks as printed, which may differ in the last digit from that of
    `per_task`; None for `unseen`, which has one below."""
    unseen_tasks: tuple[str, ...]
    """The tasks among `per_task` whose experts were not merged."""
    unseen_average: float | None
    """Average over `unseen_tasks`, where there are any."""
    document: str
    """Where the values stand."""
    where: str
    """Which part of the document."""
    confidence: Confidence
    """Whether the values were read or derived."""
    note: str | None
    """What a reader must know besides."""


@cache
def _all_rows() -> tuple[PublishedRow, ...]:
    contents = sorted(files(__name__).iterdir(), key=lambda file: file.name)
    return tuple(
        _row(entry)
        for file in contents
        if file.name.endswith(".json") and file.name != _TITLES
        for entry in json.loads(file.read_text(encoding="utf-8"))["rows"]
    )


_TITLES = "task_titles.json"


def _row(entry: dict[str, object]) -> PublishedRow:
    values: dict[str, Any] = {field.name: entry[field.name] for field in fields(PublishedRow)}
    per_task, unseen = entry["per_task"], entry["unseen_tasks"]
    return PublishedRow(
        **values
        | {
            "family": Family(str(entry["family"])),
            "confidence": Confidence(str(entry["confidence"])),
            "per_task": MappingProxyType(per_task) if isinstance(per_task, dict) else None,
            "unseen_tasks": tuple(unseen) if isinstance(unseen, list) else (),
        }
    )


def published_rows(
    suite: str, protocol: str = IN_DOMAIN, family: Family | None = None
) -> tuple[PublishedRow, ...]:
    """The published rows of a suite, in the order in which a table shows them; maybe none.

    Args:
        suite: name of the suite.
        protocol: `in-domain`, `unseen`, or the name of a corruption.
        family: whose experts; None gives the rows of every family.
    """
    return tuple(
        row
        for row in _all_rows()
        if row.suite == suite and row.protocol == protocol and family in (None, row.family)
    )


@cache
def _titles() -> dict[str, str]:
    titles: dict[str, str] = json.loads((files(__name__) / _TITLES).read_text(encoding="utf-8"))
    return titles


def task_title(name: str) -> str:
    """The name for people of one of the published tasks; unknown ones are their own title."""
    return _titles().get(name, name)
