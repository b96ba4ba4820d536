"""`apgd merge` on a cluster: the same options, layers on all its workers.

uv run experiments/merge.py --method doge_ta --base BASE --expert A=PATH ... --out FOLDER
ray submit cluster.yaml experiments/merge.py -- --method doge_ta ...

Base, experts and output must lie on storage that all machines see.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from apgd.cli import main
from apgd.execution import Executor
from tune.cluster import ray_session
from tune.ray_executor import RayExecutor

_MOST_WORKERS = 10_000


@contextmanager
def cluster(_options: argparse.Namespace) -> Iterator[Executor]:
    """The workers of the cluster that this machine belongs to, or of one started here."""
    with ray_session(most_workers=_MOST_WORKERS) as found, RayExecutor(found) as executor:
        print(found, file=sys.stderr)
        yield executor


if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]], cluster))
