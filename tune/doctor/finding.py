"""What a check came to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

_MOST_ALIKE = 4
"""Rows for machines of which different things were found, but nothing bad."""


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """A run works, but slower or less safely than it could."""
    FAILURE = "failure"
    """A run would stop, or its results would be worth nothing."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One check on one machine."""

    status: Status
    found: str
    """What was seen there."""
    advice: str = ""
    """What to do about it; nothing where all is well."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check on all machines where it came to the same."""

    check: str
    nodes: tuple[str, ...]
    """Names of the machines; none, where it is about all of them together."""
    judgement: Judgement

    def as_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {"check": self.check, "nodes": list(self.nodes), **asdict(self.judgement)}


def ok(found: str) -> Judgement:
    """All is well."""
    return Judgement(status=Status.OK, found=found)


def warning(found: str, advice: str) -> Judgement:
    """It works, but could be better."""
    return Judgement(status=Status.WARNING, found=found, advice=advice)


def failure(found: str, advice: str) -> Judgement:
    """It does not work."""
    return Judgement(status=Status.FAILURE, found=found, advice=advice)


def grouped(check: str, judged: Mapping[str, Judgement]) -> list[Finding]:
    """One finding for all machines of which the same was found, the worst first.

    Where all is well on many that differ a little, one stands for all of them.
    """
    alike: dict[Judgement, list[str]] = {}
    for node, judgement in judged.items():
        alike.setdefault(judgement, []).append(node)
    well = [judgement for judgement in alike if judgement.status is Status.OK]
    if len(well) > _MOST_ALIKE:
        nodes = [node for judgement in well for node in alike.pop(judgement)]
        alike[ok(f"for example {well[0].found}")] = nodes
    findings = [
        Finding(check=check, nodes=tuple(nodes), judgement=judgement)
        for judgement, nodes in alike.items()
    ]
    worst = list(Status)
    return sorted(findings, key=lambda f: -worst.index(f.judgement.status))


def about_all(check: str, judgements: Iterable[Judgement]) -> list[Finding]:
    """Findings that are about all machines together."""
    return [Finding(check=check, nodes=(), judgement=judgement) for judgement in judgements]


def fails(findings: Sequence[Finding]) -> bool:
    """Whether something does not work."""
    return any(finding.judgement.status is Status.FAILURE for finding in findings)
