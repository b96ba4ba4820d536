"""The command `apgd`: merge files of weights, list methods and suites."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from apgd.checkpoints import save_weights
from apgd.errors import InputError
from apgd.files import check_writable
from apgd.merging import merge
from apgd.methods import Method, Parameter, methods
from apgd.suites import suites

_INPUT_ERROR = 2
_METAVARS = {int: "K", float: "X", str: "NAME"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for bad input."""
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    options, unknown = _parser(chosen).parse_known_args(chosen)
    try:
        options.check_unknown(unknown, options)
        options.run(options)
    except Exception as error:
        bad_input = isinstance(error, InputError)
        label = "error" if bad_input else f"error ({type(error).__name__})"
        errors = Console(stderr=True, soft_wrap=True)
        errors.print(f"{label}: {error}", markup=False, highlight=False)
        if options.debug:
            errors.print(traceback.format_exc(), markup=False, highlight=False)
        return _INPUT_ERROR if bad_input else 1
    return 0


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="apgd", description="Merge fine-tuned experts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_merge(commands, arguments)
    for name, run, text in (
        ("methods", _list_methods, "list the merge methods and their parameters"),
        ("suites", _list_suites, "list the suites and their tasks"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run, check_unknown=_refuse_unknown)
    return parser


def _refuse_unknown(unknown: Sequence[str], _options: argparse.Namespace) -> None:
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}; see --help")


def _refuse_unknown_of_merge(unknown: Sequence[str], options: argparse.Namespace) -> None:
    method = methods[options.method]
    if unknown:
        known = ", ".join(_option(declared) for declared in method.params.declared())
        raise InputError(
            f"unknown argument {unknown[0]!r}; the parameters of {method.name} are: "
            f"{known or 'none'}"
        )


def _option(declared: Parameter) -> str:
    return f"--{declared.name.replace('_', '-')}"


def _add_merge(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", arguments: Sequence[str]
) -> None:
    command = commands.add_parser(
        "merge",
        help="merge experts into one safetensors file",
        description="Merge experts that were fine-tuned from one base. Every two-dimensional "
        "weight is merged, or those that a suite merges; all other parameters are the base's.",
        epilog="Each method has parameters of its own: name one to see them here "
        "(`apgd merge --method doge_ta --help`), or see `apgd methods`.",
        allow_abbrev=False,
    )
    command.add_argument("--method", required=True, help=f"one of: {', '.join(methods)}")
    command.add_argument("--base", required=True, type=Path, help="the base, a safetensors file")
    command.add_argument(
        "--expert",
        required=True,
        action="append",
        metavar="NAME=PATH",
        help="an expert's name and safetensors file; give one for each expert",
    )
    command.add_argument("--out", required=True, type=Path, help="the file to write")
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    command.add_argument("--suite", help="merge what this suite merges, instead of every matrix")
    command.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    method = _method_named(arguments)
    if method is not None:
        group = command.add_argument_group(f"parameters of {method.name}")
        for declared in method.params.declared():
            text = f"{declared.meaning}; in {declared.range_text} (default: {_default(declared)})"
            group.add_argument(
                # Both spellings work; the first is shown.
                *dict.fromkeys((_option(declared), f"--{declared.name}")),
                type=declared.kind,
                default=argparse.SUPPRESS,
                metavar=_METAVARS[declared.kind],
                help=text.replace("%", "%%"),
            )
    command.set_defaults(run=_merge, check_unknown=_refuse_unknown_of_merge)


def _method_named(arguments: Sequence[str]) -> Method | None:
    """The method that the command line names, where it names one that is known."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--method")
    name = first.parse_known_args(list(arguments))[0].method
    return methods.get(name, None)


def _default(declared: Parameter) -> str:
    default = declared.default
    if isinstance(default, float):
        return f"{default:g}"
    return "from the model" if default is None else str(default)


def _merge(options: argparse.Namespace) -> None:
    method = methods[options.method]
    params = {
        declared.name: getattr(options, declared.name)
        for declared in method.params.declared()
        if hasattr(options, declared.name)
    }
    method.parse(params)
    experts = dict(_named_path(text) for text in options.expert)
    if len(experts) < len(options.expert):
        raise InputError(f"experts must have different names, but got {', '.join(options.expert)}")
    _check_out(options.out, options.overwrite, [options.base, *experts.values()])
    _check_device(options.device)
    select = suites[options.suite].is_merged if options.suite else None
    merged = merge(
        options.method, options.base, experts, select=select, device=options.device, **params
    )
    description = {"method": method.name, "params": params, "experts": sorted(experts)}
    save_weights(options.out, merged, description)
    Console().print(
        f"merged {len(experts)} experts with {method.title} into {options.out}", highlight=False
    )


def _check_out(out: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raise InputError unless the merged weights can be written without losing anything."""
    if out.is_dir():
        raise InputError(f"--out must be a file, but {out} is a folder")
    if out.resolve() in [path.resolve() for path in inputs]:
        raise InputError(f"--out must not be one of the inputs, but got {out}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; add --overwrite to replace it")
    if not out.parent.is_dir():
        raise InputError(f"the folder of --out must exist, but {out.parent} does not")
    check_writable(out.parent, "the folder of --out")


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device must be one that torch has, but got {name!r}: {reason}"
        ) from error


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise InputError(f"--expert must be NAME=PATH, but got {text!r}")
    return name, Path(path)


def _list_methods(_options: argparse.Namespace) -> None:
    console = Console()
    for method in methods.values():
        console.print(f"[bold]{method.name}[/bold]  {method.title}. {method.source}.")
        table = Table("parameter", "default", "range", "searched", "meaning", box=None)
        for declared in method.params.declared():
            table.add_row(
                declared.name,
                _default(declared),
                declared.range_text,
                "yes" if declared.search else "no",
                declared.meaning,
            )
        if table.row_count:
            console.print(table)
        console.print()


def _list_suites(_options: argparse.Namespace) -> None:
    console = Console()
    for suite in suites.values():
        console.print(f"[bold]{suite.name}[/bold]  {suite.title}")
        table = Table("task", "classes", "expert", "stands for", box=None)
        for task in (*suite.tasks, *suite.unseen):
            table.add_row(
                task.name,
                str(len(task.class_names)),
                "yes" if task in suite.tasks else "no",
                task.stands_for or "",
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
