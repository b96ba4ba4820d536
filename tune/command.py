"""Command lines of experiments: a dataclass's fields as options, errors as sentences."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import tyro
from rich.console import Console

from apgd.errors import DiskFullError, InputError, MemoryFullError
from apgd.masking import without_secrets
from tune import interrupts
from tune.causes import cause_of
from tune.head import HeadLostError
from tune.search.errors import SearchEndedError

INPUT_ERROR = 2
_EXPECTED = (InputError, DiskFullError, HeadLostError, MemoryFullError, SearchEndedError)
"""Errors that say it all, and need no traceback."""
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
        The exit status: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP,
        1 for any other error.
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
    except (Exception, KeyboardInterrupt) as error:
        cause = cause_of(error)
        if isinstance(cause, KeyboardInterrupt):
            by = "" if str(cause) in ("", "Ctrl-C") else f" by {cause}"
            errors.print(f"interrupted{by}; the same command goes on from here", markup=False)
            return getattr(cause, "status", 130)
        expected = isinstance(cause, _EXPECTED)
        label = "error" if expected else f"error ({type(cause).__name__})"
        errors.print(without_secrets(f"{label}: {cause}", *chosen), markup=False, highlight=False)
        if debug:
            shown = without_secrets("".join(traceback.format_exception(error)), *chosen)
            errors.print(shown, markup=False)
        elif not expected:
            errors.print("run again with --debug for the traceback", markup=False)
        return INPUT_ERROR if isinstance(cause, InputError) else 1
    return 0
