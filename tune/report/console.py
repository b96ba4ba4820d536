"""Tables of the report on a console."""

from rich.box import SIMPLE
from rich.table import Table as RichTable
from rich.text import Text

from tune.report.document import Table

_COLOURS = {"pass": "green", "fail": "red"}


def as_rich(table: Table) -> RichTable:
    """A table for rich, with its caption as title and its notes below."""
    shown = RichTable(
        title=Text(table.caption), caption=Text("\n".join(table.notes)), box=SIMPLE,
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    for index, name in enumerate(table.header):
        numeric = all(row.cells[index].numeric for row in table.rows)
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in table.rows:
        if row.starts_group:
            shown.add_section()
        shown.add_row(*(Text(cell.text, style=_COLOURS.get(cell.text, "")) for cell in row.cells))
    return shown
