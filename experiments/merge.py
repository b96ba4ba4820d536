"""`apgd merge` on a cluster: the same options, layers on all its workers.

uv run experiments/merge.py --method doge_ta --base BASE --expert A=PATH ... --out FOLDER
ray submit cluster.yaml experiments/merge.py -- --method doge_ta ...

Base, experts and output must lie on storage that all machines see. Each worker has one thread, or
as many as --threads-per-worker says, which suits models whose layers leave room for few workers.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from apgd.cli import main
from apgd.execution import Executor
from tune.cluster import ray_session
from tune.ray_executor import RayExecutor

_MOST_WORKERS = 10_000


@contextmanager
def cluster(threads: int) -> Iterator[Executor]:
    """The workers of the cluster that this machine belongs to, or of one started here."""
    with ray_session(most_workers=_MOST_WORKERS) as found:
        if not found.gpus:
            workers = max(1, found.cpus // threads)
            found = replace(found, workers=workers, threads_per_worker=threads)
        print(found, file=sys.stderr)
        with RayExecutor(found) as executor:
            yield executor


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--threads-per-worker", type=int, default=1)
    options, rest = parser.parse_known_args(arguments)
    if options.threads_per_worker < 1:
        parser.error(f"--threads-per-worker must be at least 1, but got {arguments}")
    return main(["merge", *rest], lambda _options: cluster(options.threads_per_worker))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
