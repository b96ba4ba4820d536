"""The main job: fine-tune eight experts, merge them, search, evaluate, report.

uv run experiments/full_repro.py                                   on this machine
ray submit cluster.yaml experiments/full_repro.py -- --gpus 8      on a cluster
"""

import sys

from tune.command import run_command
from tune.experiment import Experiment
from tune.job import run_experiment


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        Experiment, run_experiment, prog="experiments/full_repro.py", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
