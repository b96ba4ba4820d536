"""Findings as a table."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tune.doctor.finding import Finding, Status

_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILURE: "bold red"}
_WIDE = 140
_FEW = 3


def show(findings: Sequence[Finding], nodes: Sequence[str]) -> None:
    """Print the findings and a line that sums them up.

    Args:
        findings: in the order in which they are shown.
        nodes: the machines that were looked at; of one alone, the name is not shown.
    """
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # a file has no width
    console.print(_table(findings, nodes, console.width // 5))
    counts = {status: sum(f.judgement.status is status for f in findings) for status in Status}
    words = [f"{count} {_plural(status, count)}" for status, count in counts.items() if count]
    machines = f"{len(nodes)} machine{'' if len(nodes) == 1 else 's'}"
    console.print(Text(f"{', '.join(words)} on {machines}"))


def _plural(status: Status, count: int) -> str:
    return str(status) if status is Status.OK or count == 1 else f"{status}s"


def _table(findings: Sequence[Finding], nodes: Sequence[str], width: int) -> Table:
    table = Table(
        Column("check", no_wrap=True), Column("status", no_wrap=True), box=SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    if len(nodes) > 1:
        table.add_column("where", overflow="fold", max_width=width)
    table.add_column("found, and what to do", overflow="fold")
    for finding in findings:
        judgement = finding.judgement
        said = Text(judgement.found)
        if judgement.advice:
            said.append(f"\n→ {judgement.advice}", style="bold")
        cells = [Text(finding.check), Text(judgement.status, style=_COLOURS[judgement.status])]
        if len(nodes) > 1:
            cells.append(Text(_where(finding.nodes, nodes)))
        table.add_row(*cells, said)
    return table


def _where(names: Sequence[str], nodes: Sequence[str]) -> str:
    """Which machines: a few by name, many by number."""
    if not names or set(nodes) <= set(names):
        return "all"
    if len(names) <= _FEW:
        return ", ".join(names)
    return f"{', '.join(names[:_FEW])} and {len(names) - _FEW} more"
