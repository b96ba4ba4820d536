"""The command `apgd methods`: the merge methods and their parameters."""

import argparse

from rich.console import Console
from rich.table import Table

from apgd.methods import Parameter, methods


def add_methods(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add `methods`; returns its parser in a list."""
    text = "list the merge methods and their parameters"
    command = commands.add_parser("methods", help=text, description=text.capitalize() + ".")
    command.set_defaults(run=_list_methods)
    return [command]


def default_text(declared: Parameter) -> str:
    """A parameter's default for people."""
    default = declared.default
    if isinstance(default, float):
        return f"{default:g}"
    return "from the model" if default is None else str(default)


def _list_methods(_options: argparse.Namespace) -> None:
    console = Console()
    for method in methods.values():
        console.print(f"[bold]{method.name}[/bold]  {method.title}. {method.source}.")
        table = Table("parameter", "default", "range", "searched", "meaning", box=None)
        for declared in method.params.declared():
            table.add_row(
                declared.name,
                default_text(declared),
                declared.range_text,
                "yes" if declared.search else "no",
                declared.meaning,
            )
        if table.row_count:
            console.print(table)
        console.print()
