"""The command `apgd merge`: files of weights in, one model out."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from apgd.checkpoints import save_weights
from apgd.commands._evidence import add_evidence_options, evidence_from
from apgd.commands.methods import default_text
from apgd.errors import InputError
from apgd.estimate import check_disk, check_memory, expected_seconds, needs
from apgd.files import check_writable, write_json
from apgd.merging import Progress, merge_vectors
from apgd.methods import PLUGS, SUFFIX, Method, Parameter, methods
from apgd.streaming import SHARD_BYTES, check_apart, stream
from apgd.suites import suites
from apgd.summary import MergeSummary
from apgd.task_vectors import TaskVectors

_WIDE = 200
_SIZE = r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?"
_METAVARS = {int: "K", float: "X", str: "NAME"}


def add_merge(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", arguments: Sequence[str]
) -> list[argparse.ArgumentParser]:
    """Add `merge`; returns its parser in a list.

    Args:
        commands: where to.
        arguments: the command line; the method that it names has options of its own.
    """
    command = commands.add_parser(
        "merge",
        help="merge experts into one model",
        description="Merge experts that were fine-tuned from one base. Every two-dimensional "
        "weight is merged, or those that a suite merges; all other parameters are the base's.",
        epilog="Each method has parameters of its own: name one to see them here "
        "(`apgd merge --method doge_ta --help`), or see `apgd methods`.",
        allow_abbrev=False,
    )
    command.add_argument("--method", required=True, help=f"one of: {', '.join(methods)}")
    command.add_argument(
        "--plug", choices=PLUGS, help="put APGD's modification vector before the method"
    )
    command.add_argument(
        "--base", required=True, type=Path, help="the base: a safetensors file, or a folder of them"
    )
    command.add_argument(
        "--expert",
        required=True,
        action="append",
        metavar="NAME=PATH",
        help="an expert's name, and its file or folder; give one for each expert",
    )
    command.add_argument(
        "--out",
        required=True,
        type=Path,
        help="what to write: one file where it ends in .safetensors, made in memory; otherwise a "
        "folder of shards, written as the merge goes, which can be interrupted and resumed",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing result")
    command.add_argument(
        "--shard-size",
        type=_bytes,
        default=SHARD_BYTES,
        metavar="SIZE",
        help="size of the shards in a folder, for example 1GB (default: 256MiB)",
    )
    command.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="working memory for matrices side by side (default: what the largest needs, "
        "and 256MiB)",
    )
    command.add_argument("--plan", action="store_true", help="say what is needed, and stop")
    command.add_argument("--summary", type=Path, metavar="FILE", help="write a JSON summary")
    command.add_argument("--details", action="store_true", help="print a table of all matrices")
    command.add_argument("--suite", help="merge what this suite merges, instead of every matrix")
    add_evidence_options(command)
    command.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    method = _method_named(arguments)
    if method is not None:
        group = command.add_argument_group(f"parameters of {method.name}")
        for declared in method.params.declared():
            among = "one of" if declared.choices else "in"
            default = default_text(declared)
            text = f"{declared.meaning}; {among} {declared.range_text} (default: {default})"
            group.add_argument(
                # Both spellings work; the first is shown.
                *dict.fromkeys((_option(declared), f"--{declared.name}")),
                type=declared.kind,
                default=argparse.SUPPRESS,
                metavar=_METAVARS[declared.kind],
                help=text.replace("%", "%%"),
            )
    command.set_defaults(run=_merge, check_unknown=_refuse_unknown_of_merge)
    return [command]


def _method_named(arguments: Sequence[str]) -> Method | None:
    """The method that the command line names, where it names one that is known."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--method")
    first.add_argument("--plug")
    found = first.parse_known_args(list(arguments))[0]
    known: Method | None = methods.get(f"{found.method}{SUFFIX if found.plug in PLUGS else ''}")
    return known


def _chosen(options: argparse.Namespace) -> Method:
    """The method, with what comes before it.

    Raises:
        InputError: where it is unknown, or nothing can come before it.
    """
    return methods[options.method + (SUFFIX if options.plug else "")]


def _merge(options: argparse.Namespace) -> None:
    method = _chosen(options)
    params = {
        declared.name: getattr(options, declared.name)
        for declared in method.params.declared()
        if hasattr(options, declared.name)
    }
    settings = method.parse(params)
    experts = dict(_named_path(text) for text in options.expert)
    if len(experts) < len(options.expert):
        raise InputError(f"experts must have different names, but got {', '.join(options.expert)}")
    in_memory = options.out.suffix == ".safetensors"
    if options.summary is not None:
        _check_summary(options)
    _check_out(options.out, options.overwrite, [options.base, *experts.values()], in_memory)
    _check_device(options.device)
    with options.executor(options) as executor:
        vectors = TaskVectors(
            options.base,
            experts,
            suites[options.suite].is_merged if options.suite else None,
            device=options.device,
            keep=False,
            executor=executor,
        )
        planned = evidence_from(options, method, experts)
        method.check(vectors, settings, planned.evidence)
        check_apart(options.out, vectors)
        needed = needs(method, vectors, shard_bytes=None if in_memory else options.shard_size)
        check_memory(needed, vectors)
        if in_memory or options.plan:  # otherwise what is there already counts
            check_disk(needed.written_bytes, options.out)
        console = Console(stderr=True, soft_wrap=True)
        seconds = expected_seconds(method, settings, vectors)
        console.print(f"{needed}; about {_duration(seconds)} of computing", highlight=False)
        if options.plan:
            return
        planned.gather(options, console)
        with progress_bar(console) as progress:
            evidence = planned.reporting_to(progress)
            if in_memory:
                merged = merge_vectors(method, settings, vectors, progress, evidence)
                description = {
                    "method": method.name,
                    "params": params,
                    "experts": sorted(experts),
                    "evidence": merged.summary.evidence,
                }
                save_weights(options.out, merged, description, for_transformers=True)
                summary = merged.summary
            else:
                summary = stream(
                    method, settings, vectors, options.out,
                    options.shard_size, options.overwrite, progress, evidence,
                )  # fmt: skip
    if options.summary is not None:
        write_json(options.summary, summary.as_dict())
    if options.details:
        wide = Console()
        if not wide.is_terminal:
            wide.width = _WIDE  # a file has no width
        wide.print(_details(summary))
    Console(soft_wrap=True).print(
        f"merged {len(experts)} experts with {method.title} into {options.out} "
        f"in {_duration(summary.seconds)}: {len(summary.layers)} matrices are merged, "
        f"{len(summary.not_merged)} other parameters are the base's",
        highlight=False,
        markup=False,
    )


def _details(summary: MergeSummary) -> Table:
    table = Table(
        Column("matrix", overflow="fold"),
        "shape",
        "‖τ‖",
        "λ",
        "k",
        "loss left",
        "kept",
        "‖θ − θ0‖",
        "s",
        box=None,
    )
    for layer in summary.layers:
        details = layer.details
        after, before = details.get("loss_after"), details.get("loss_before")
        left = f"{after / before:.1e}" if isinstance(after, float) and before else "–"  # type: ignore[operator]
        table.add_row(
            Text(layer.name),
            " x ".join(map(str, layer.shape)),
            _span(layer.task_norms),
            _span(details.get("coefficients")),
            str(details.get("subspace_size", "–")),
            left,
            _span(details.get("kept")),
            f"{layer.delta_norm:.3g}",
            f"{layer.seconds:.2f}",
        )
    return table


def _span(values: object) -> str:
    """Smallest and largest of the experts' figures."""
    if not isinstance(values, list | tuple):
        return "–"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _check_summary(options: argparse.Namespace) -> None:
    summary = options.summary
    if summary.suffix != ".json":
        raise InputError(f"--summary must end in .json, but got {summary}")
    if summary.exists() and not options.overwrite:
        raise InputError(f"{summary} exists already; add --overwrite to replace it")
    if not summary.parent.is_dir():
        raise InputError(f"the folder of --summary must exist, but {summary.parent} does not")
    check_writable(summary.parent, "the folder of --summary")


def _check_out(out: Path, overwrite: bool, inputs: Sequence[Path], in_memory: bool) -> None:
    """Raise InputError unless the merged weights can be written without losing anything."""
    if out.resolve() in [path.resolve() for path in inputs]:
        raise InputError(f"--out must not be one of the inputs, but got {out}")
    if not out.parent.is_dir():
        raise InputError(f"the folder of --out must exist, but {out.parent} does not")
    if not in_memory:
        return  # the folder itself is checked when it is opened
    if out.is_dir():
        raise InputError(f"--out ends in .safetensors, so it must be a file, but {out} is a folder")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; add --overwrite to replace it")
    check_writable(out.parent, "the folder of --out")


def _bytes(text: str) -> int:
    """Bytes from a size such as 512MiB, 8GB or 1000000."""
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"a size must look like 512MiB or 8GB, but got {text!r}")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index((prefix or " ").upper()))


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, and nothing in a file."""
    with Bar(
        TextColumn("merging"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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


def _refuse_unknown_of_merge(unknown: Sequence[str], options: argparse.Namespace) -> None:
    method = _chosen(options)
    if unknown:
        known = ", ".join(_option(declared) for declared in method.params.declared())
        raise InputError(
            f"unknown argument {unknown[0]!r}; the parameters of {method.name} are: "
            f"{known or 'none'}"
        )


def _option(declared: Parameter) -> str:
    return f"--{declared.name.replace('_', '-')}"
