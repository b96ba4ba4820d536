"""The command `apgd`: one module in apgd.commands for each of its commands."""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from rich.console import Console

from apgd.commands.convert import add_convert
from apgd.commands.data import add_data
from apgd.commands.export import add_export
from apgd.commands.lora import add_extract_lora
from apgd.commands.merge import add_merge
from apgd.commands.methods import add_methods
from apgd.commands.suites import add_suites
from apgd.errors import InputError
from apgd.execution import Executor, Here
from apgd.masking import without_secrets

Add: TypeAlias = Callable[
    ["argparse._SubParsersAction[argparse.ArgumentParser]"], list[argparse.ArgumentParser]
]
"""Adds commands; returns their parsers."""

_INPUT_ERROR = 2
_INTERRUPTED = 130


@contextmanager
def _here(options: argparse.Namespace) -> Iterator[Executor]:
    yield Here(options.memory)


def main(
    arguments: Sequence[str] | None = None,
    executor: Callable[[argparse.Namespace], AbstractContextManager[Executor]] = _here,
    more: Iterable[Add] = (),
) -> int:
    """Run the command line; returns the exit status, 2 for bad input.

    Args:
        arguments: those of the process, where None.
        executor: makes what works on the matrices of a merge, from the options.
        more: commands besides this package's own; a command may return an exit status.
    """
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options, unknown = _parser(chosen, more).parse_known_args(chosen)
        options.executor = executor
        options.check_unknown(unknown, options)
        status: int | None = options.run(options)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return _INTERRUPTED
    except Exception as error:
        bad_input = isinstance(error, InputError)
        label = "error" if bad_input else f"error ({type(error).__name__})"
        errors = Console(stderr=True, soft_wrap=True)
        errors.print(without_secrets(f"{label}: {error}"), markup=False, highlight=False)
        if "--debug" in chosen:
            errors.print(without_secrets(traceback.format_exc()), markup=False, highlight=False)
        return _INPUT_ERROR if bad_input else 1
    return status or 0


def _parser(arguments: Sequence[str], more: Iterable[Add]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="apgd", description="Merge fine-tuned experts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parsers = add_merge(commands, arguments)
    own = (add_methods, add_suites, add_data, add_convert, add_export, add_extract_lora)
    for add in (*own, *more):
        parsers += add(commands)
    for command in parsers:
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if command.get_default("check_unknown") is None:
            command.set_defaults(check_unknown=_refuse_unknown)
    return parser


def _refuse_unknown(unknown: Sequence[str], _options: argparse.Namespace) -> None:
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}; see --help")


if __name__ == "__main__":
    sys.exit(main())
