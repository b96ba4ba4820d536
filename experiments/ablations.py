"""DOGE TA taken apart: components, parameters, solver, number of tasks, order, noise.

uv run experiments/ablations.py                            everything
uv run experiments/ablations.py --only components eta      some
uv run experiments/ablations.py --budget 0.25              about a quarter of the work

A run that was stopped goes on from where it was, and a larger budget or more seeds extend it.
"""

import sys

from tune.ablations import AblationSettings, run_ablations
from tune.command import run_command


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        AblationSettings, run_ablations, prog="experiments/ablations.py", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
