"""The command `apgd methods`: the merge methods, what they need, and their parameters."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from apgd.methods import SUFFIX, Method, Parameter, methods

_WIDE = 160


def add_methods(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add `methods`; returns its parser in a list."""
    text = "list the merge methods, what they need, and their parameters"
    command = commands.add_parser(
        "methods",
        help=text,
        description=text.capitalize() + ".",
        epilog=f"NAME{SUFFIX} is the method NAME after APGD's modification vector was added to "
        "every task vector. Methods of your own are found in the folders that the environment "
        "variable APGD_METHODS names.",
    )
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="show ranges, meanings and sources of these"
    )
    command.set_defaults(run=_list_methods)
    return [command]


def default_text(declared: Parameter) -> str:
    """A parameter's default for people."""
    default = declared.default
    if isinstance(default, float):
        return f"{default:g}"
    return "from the model" if default is None else str(default)


def _list_methods(options: argparse.Namespace) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # a file has no width
    if not options.names:
        console.print(_overview())
        console.print(
            "\nNAME+apgd puts APGD's modification vector before NAME; "
            "`apgd methods NAME` shows ranges, meanings and sources",
            markup=False,
            highlight=False,
        )
        return
    for method in [methods[name] for name in options.names]:  # all looked up before any is shown
        _describe(method, console)


def _overview() -> Table:
    table = Table(
        Column("method", no_wrap=True), "title", "needs", "parameters and their defaults", box=None
    )
    for method in methods.values():
        declared = method.params.declared()
        shown = ", ".join(f"{p.name}={default_text(p)}" for p in declared)
        table.add_row(*map(escape, (method.name, method.title, method.needs, shown or "none")))
    return table


def _describe(method: Method, console: Console) -> None:
    console.print(f"[bold]{method.name}[/bold]  {escape(f'{method.title}. {method.source}.')}")
    console.print(f"needs {method.needs}", highlight=False)
    table = Table("parameter", "default", "range", "searched in", "meaning", box=None)
    for declared in method.params.declared():
        table.add_row(
            declared.name,
            default_text(declared),
            declared.range_text,
            declared.search_text,
            escape(declared.meaning),
        )
    if table.row_count:
        console.print(table)
    console.print()
