"""Command lines of experiments: a dataclass's fields as options, errors as sentences."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import tyro
from rich.console import Console

from apgd.errors import InputError
from tune import interrupts

INPUT_ERROR = 2
INTERRUPTED = 130
_STYLE = (tyro.conf.FlagCreatePairsOff, tyro.conf.EnumChoicesFromValues)


class HasDebug(Protocol):
    """Settings that say whether tracebacks are wanted."""

    @property
    def debug(self) -> bool:
        """Whether to show the traceback of an error."""


Settings = TypeVar("Settings", bound=HasDebug)


def run_command(
    settings: type[Settings],
    run: Callable[[Settings, Console], None],
    *,
    prog: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line into `settings` and run an experiment.

    Returns:
        The exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for any other error.
    """
    console = Console()
    errors = Console(stderr=True, soft_wrap=True)
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in chosen
    try:
        parsed = tyro.cli(settings, prog=prog, args=chosen, config=_STYLE)
        with interrupts.noted():
            run(parsed, console)
            interrupts.check()
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on from here", markup=False)
        return INTERRUPTED
    except Exception as error:
        # Ray wraps what a worker raised; the cause is what the user needs.
        cause = getattr(error, "cause", None) or error
        bad_input = isinstance(cause, InputError)
        label = "error" if bad_input else f"error ({type(cause).__name__})"
        errors.print(f"{label}: {cause}", markup=False, highlight=False)
        if debug:
            errors.print("".join(traceback.format_exception(error)), markup=False)
        elif not bad_input:
            errors.print("run again with --debug for the traceback", markup=False)
        return INPUT_ERROR if bad_input else 1
    return 0
