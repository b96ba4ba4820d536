"""The report as Markdown."""

import re

from tune.report.document import (
    Block,
    Command,
    Details,
    Document,
    Facts,
    Plot,
    SampleGrid,
    Table,
    Text,
    Tiles,
    Warnings,
)


def render_markdown(document: Document) -> str:
    """The report without its folded parts; figures are referred to as `figures/<name>.png`."""
    parts = [f"# {_inline(document.title)}", f"**{_inline(document.headline)}**"]
    parts.append(_inline(document.setting))
    parts += [_block(block) for block in document.lead]
    for section in document.sections:
        parts.append(f"## {_inline(section.title)}")
        for block in section.blocks:
            # What the page folds away is left out here; the manifest and the records have it.
            if not isinstance(block, Details):
                parts.append(_block(block))
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Plot():
            return f"![{_inline(block.alt)}](figures/{block.name}.png)\n\n{_inline(block.caption)}"
        case SampleGrid():
            rows = [f"- {_inline(row.title)}: {_inline(row.detail)}" for row in block.rows]
            picture = "![Sample images, a row per task.](figures/samples.png)"
            return "\n".join([picture, "", "From top to bottom:", "", *rows])
        case Text():
            return _inline(block.text)
        case Warnings():
            return "\n".join(f"> {_inline(item)}  " for item in block.items)
        case Facts():
            return "\n".join(f"- {_inline(name)}: {_inline(value)}" for name, value in block.items)
        case Command():
            return f"    {_one_line(block.text)}"
        case Tiles():
            return "\n".join(
                f"- {_inline(label)}: {_inline(value)}" + (f" ({_inline(of)})" if of else "")
                for label, value, of in block.items
            )


def _table(table: Table) -> str:
    marks = ["---", *(_alignment(table, index) for index in range(1, len(table.header)))]
    lines = [
        f"**{_inline(table.caption)}**",
        "",
        _line([_inline(name) for name in table.header]),
        _line(marks),
    ]
    for row in table.rows:
        cells = [
            f"**{_inline(cell.text)}**" if cell.strong else _inline(cell.text) for cell in row.cells
        ]
        if row.detail:
            cells[0] += f" ({_inline(row.detail)})"
        lines.append(_line(cells))
    for note in table.notes:
        lines += ["", _inline(note)]
    return "\n".join(lines)


def _alignment(table: Table, index: int) -> str:
    return "---:" if all(row.cells[index].numeric for row in table.rows) else "---"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _inline(text: str) -> str:
    """Text that Markdown shows as it is: what could be a mark is escaped, and it is one line.

    Brackets that no link can begin with, and underscores inside words, are left alone, so that
    intervals and parameter names read well as plain text too.
    """
    return re.sub(r"([\\`*<>|]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    """Without line breaks, and without characters that steer a terminal or turn text round."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
