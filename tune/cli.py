"""The command `apgd`, with the commands that need a cluster."""

import sys

from apgd.cli import main as library_main
from tune.doctor.command import add_doctor


def main() -> int:
    """Run the command line; returns the exit status, as `apgd.cli.main` does."""
    return library_main(more=[add_doctor])


if __name__ == "__main__":
    sys.exit(main())
