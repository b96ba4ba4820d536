"""The command `apgd extract-lora`: a merged model as an adapter of its base."""

import argparse
from pathlib import Path

from rich.console import Console

from apgd.checkpoints import open_weights
from apgd.errors import InputError
from apgd.files import check_writable
from apgd.lora import Extracted, extract, write_adapter
from apgd.suites import suites
from apgd.task_vectors import two_dimensional

_WORST = 5


def add_extract_lora(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add the command, and return it."""
    command = commands.add_parser(
        "extract-lora",
        help="write what a model changed of its base as a LoRA adapter",
        description="Write the change from a base to a merged or fine-tuned model as a LoRA "
        "adapter, which PEFT loads: of each matrix the closest one of the rank. How close it is "
        "follows, as ‖ΔW − B A‖ / ‖ΔW‖. All that differs must be weights of linear layers.",
    )
    command.add_argument("--base", required=True, type=Path, help="a safetensors file or folder")
    command.add_argument("--model", required=True, type=Path, help="what the base was changed to")
    command.add_argument("--rank", required=True, type=int, metavar="R", help="rank of each change")
    command.add_argument("--out", required=True, type=Path, help="the adapter's folder, a new one")
    command.add_argument("--suite", help="allow changes only where this suite merges")
    command.add_argument("--base-name", metavar="ID", help="hub id of the base, for the adapter")
    command.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    command.set_defaults(run=_run)
    return [command]


def _run(options: argparse.Namespace) -> None:
    if options.out.exists() and (options.out.is_file() or any(options.out.iterdir())):
        raise InputError(f"--out must be a new or empty folder, but {options.out} is not")
    check_writable(options.out, "the folder of --out")
    base = open_weights(options.base, "the base")
    model = open_weights(options.model, "the model", base)
    is_changed = suites[options.suite].is_merged if options.suite else two_dimensional
    found = extract(base, model, options.rank, is_changed, device=options.device)
    write_adapter(
        options.out,
        found.factors,
        base=options.base_name,
        metadata={"relative_error": found.error, "relative_errors": found.errors},
    )
    Console(soft_wrap=True).print(_told(found, options), highlight=False, markup=False)


def _told(found: Extracted, options: argparse.Namespace) -> str:
    worst = sorted(found.errors.items(), key=lambda item: -item[1])[:_WORST]
    lines = [
        f"wrote {len(found.factors)} changes of rank {options.rank} to {options.out}: "
        f"relative error {found.error:.3g} over all, {worst[0][1]:.3g} at most"
    ]
    lines += [f"  {error:.3g}  {name}" for name, error in worst]
    return "\n".join(lines)
