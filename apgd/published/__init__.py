"""Published accuracies of CLIP ViT-B/32 on the real data sets, to stand beside a run's own.

These are facts from documents, in percent. Two families of fine-tuned experts are in use under the
same model name; their baselines differ, so rows of one are never compared with rows of the other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from apgd.errors import InputError

__all__ = ["Confidence", "Family", "PublishedRow", "published_rows", "task_title"]


class Family(StrEnum):
    """Whose fine-tuned experts were merged."""

    OPENCLIP = "openclip"
    """The original ones, in OpenCLIP's format (Ilharco et al.)."""
    TRANSFORMERS = "transformers"
    """Those that FusionBench trained anew, in the format of transformers."""
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
    """One method's published accuracies, in percent."""

    method: str
    """Name of the method."""
    title: str
    """Name for people."""
    family: Family
    """Whose experts."""
    protocol: str
    """`in-domain` (8 tasks merged and tested), `unseen` (6 merged, 2 more tested), or for tables of
    4 tasks `clean` or the name of a corruption."""
    per_task: Mapping[str, float] | None
    """Accuracy by task; None where only an average is known."""
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
def _content() -> dict[str, Any]:
    text = (files(__name__) / "results.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


@cache
def _all_rows() -> tuple[PublishedRow, ...]:
    return tuple(_row(entry) for entry in _content()["rows"])


def _row(entry: dict[str, object]) -> PublishedRow:
    values = {field.name: entry[field.name] for field in fields(PublishedRow)}
    per_task, unseen = entry["per_task"], entry["unseen_tasks"]
    return PublishedRow(
        **values  # type: ignore[arg-type]
        | {
            "family": Family(str(entry["family"])),
            "confidence": Confidence(str(entry["confidence"])),
            "per_task": MappingProxyType(per_task) if isinstance(per_task, dict) else None,
            "unseen_tasks": tuple(unseen) if isinstance(unseen, list) else (),
        }
    )


def published_rows(protocol: str, family: Family | None = None) -> tuple[PublishedRow, ...]:
    """The published rows of one protocol, in the order in which a table shows them.

    Args:
        protocol: `in-domain`, `unseen`, `clean`, or the name of a corruption.
        family: whose experts; None gives the rows of every family.

    Raises:
        InputError: for a protocol of which no row is known.
    """
    rows = tuple(row for row in _all_rows() if row.protocol == protocol)
    if not rows:
        known = ", ".join(dict.fromkeys(row.protocol for row in _all_rows()))
        raise InputError(f"no published rows for protocol {protocol!r}; known are: {known}")
    return tuple(row for row in rows if family in (None, row.family))


def task_title(name: str) -> str:
    """The name for people of one of the published tasks; unknown ones are their own title."""
    return str(_content()["task_titles"].get(name, name))
