"""The report as a tree that knows nothing of HTML or Markdown, so that both say the same."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    strong: bool = False
    """Whether it is the best of its column."""
    numeric: bool = True
    """Whether it is a number, and so aligned to the right."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table; its first cell names it."""

    cells: tuple[Cell, ...]
    starts_group: bool = False
    """Whether a line is drawn above it."""
    detail: str = ""
    """Said in small print under the row's name."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is shown."""

    name: str
    """Identifier, unique in the report."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    """Sentences under the table."""

    def csv(self) -> str:
        """The table as CSV, with the texts that it shows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([cell.text for cell in row.cells] for row in self.rows)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture: as SVG for a wide page and, where that differs, for a narrow one."""

    wide: str
    """SVG text whose colours are those of the page's style sheet."""
    narrow: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure, of one or more drawings side by side."""

    name: str
    """Identifier, and the file's name without its suffix."""
    caption: str
    alt: str
    """What the figure shows, for who cannot see it."""
    drawings: tuple[Drawing, ...]
    png: bytes
    """The whole figure on white, for files."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures of one task."""

    title: str
    detail: str
    pngs: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class SampleGrid:
    """Pictures of several tasks."""

    rows: tuple[Samples, ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Warnings:
    """Sentences that a reader must not miss."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, to be copied."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A few numbers, large: (label, value, what it is of)."""

    items: tuple[tuple[str, str, str], ...]


Block = Table | Plot | SampleGrid | Text | Warnings | Facts | Command | Tiles


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is shown when asked for."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the report."""

    name: str
    """Identifier, unique in the report."""
    title: str
    blocks: tuple[Block | Details, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The whole report."""

    title: str
    headline: str
    setting: str
    """One line on how this was measured."""
    lead: tuple[Block, ...]
    """What stands above the first section."""
    sections: tuple[Section, ...]

    def blocks(self) -> list[Block]:
        """Every block, in order, also those inside details."""
        found: list[Block] = list(self.lead)
        for section in self.sections:
            for block in section.blocks:
                found += block.blocks if isinstance(block, Details) else [block]
        return found


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished report."""

    document: Document
    markdown: str
    html: str
    csv: str
    """Every interval of the result tables, a line each, in percent."""
    compared: str
    """The comparison with the published results in one sentence, or why there is none."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG by name."""


def words(*cells: str) -> tuple[Cell, ...]:
    """Cells of text."""
    return tuple(Cell(text=cell, numeric=False) for cell in cells)


def numbers(cells: Sequence[str]) -> tuple[Cell, ...]:
    """Cells of numbers."""
    return tuple(Cell(text=cell) for cell in cells)
