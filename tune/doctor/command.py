"""The command `apgd doctor`."""

import argparse
import json
import sys
from pathlib import Path

from apgd.errors import InputError

_SECONDS = 150.0
"""More than all looks together take at most, so that a silent machine is one that says nothing."""


def add_doctor(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add `doctor`; returns its parser in a list."""
    text = "check this machine, or every node of a cluster, before a run"
    command = commands.add_parser(
        "doctor",
        help=text,
        description=f"{text.capitalize()}: versions, GPUs, memory, disks, shared folders, the "
        "model hub, clocks and limits. The exit status is 1 where something would fail.",
    )
    command.add_argument(
        "--cluster", nargs="?", const="auto", metavar="ADDRESS",
        help="check all nodes of the Ray cluster at host:port, or of the one that this machine is "
        "part of",
    )  # fmt: skip
    command.add_argument(
        "--suite", default="mini_vision", metavar="NAME",
        help="what the run is to be of (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--run-dir", type=Path, default=Path("runs"), metavar="DIR",
        help="folder for results (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--experts-dir", type=Path, default=Path("runs/experts"), metavar="DIR",
        help="folder of fine-tuned experts (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--timeout", type=float, default=_SECONDS, metavar="SECONDS",
        help="how long a node may take to answer (default: %(default)g)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.set_defaults(run=_run)
    return [command]


def _run(options: argparse.Namespace) -> int:
    if not options.timeout > 0:
        raise InputError(f"--timeout must be positive, but got {options.timeout}")
    # What follows imports torch and Ray, which other commands do without.
    from tune.doctor.examination import examine_cluster, examine_here
    from tune.doctor.finding import fails
    from tune.doctor.report import show

    folders = {"run folder": options.run_dir, "experts folder": options.experts_dir}
    if options.cluster is None:
        done = examine_here(options.suite, folders)
    else:
        done = examine_cluster(options.cluster, options.suite, folders, options.timeout)
    if options.json:
        listed = [finding.as_dict() for finding in done.findings]
        json.dump({"nodes": list(done.nodes), "findings": listed}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        show(done.findings, done.nodes)
    return int(fails(done.findings))
