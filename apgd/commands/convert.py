"""`apgd convert`: a checkpoint of CLIP as safetensors in the canonical layout."""

import argparse
from pathlib import Path

from rich.console import Console

from apgd.models.clip_geometry import GEOMETRIES, geometry_named
from apgd.published import Family


def add_convert(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add the command, and return it."""
    command = commands.add_parser(
        "convert",
        help="convert a checkpoint of CLIP",
        description="Write a checkpoint of CLIP as safetensors, with the names of transformers and "
        "queries, keys and values apart. Known are safetensors and files of PyTorch, with the "
        "names of transformers or open_clip, of either tower or both; files of PyTorch may also be "
        "whole pickled modules. Nothing in them is run.",
    )
    command.add_argument("source", type=Path, metavar="IN", help="the checkpoint: a file or folder")
    command.add_argument("out", type=Path, metavar="OUT", help="the safetensors file to write")
    command.add_argument(
        "--part",
        choices=("vision", "whole"),
        default="vision",
        help="what to keep: the vision tower, which is what merges, or the whole model "
        "(default: vision)",
    )
    command.add_argument(
        "--model",
        metavar="NAME",
        help=f"what it must be: {', '.join(GEOMETRIES)} (default: told by its sizes)",
    )
    command.add_argument(
        "--base",
        type=Path,
        metavar="PATH",
        help="where the projection is taken from, for checkpoints that have none",
    )
    command.add_argument(
        "--family",
        choices=[family.value for family in Family if family is not Family.NOT_STATED],
        help="whose expert it is, so that --compare of experiments/full_repro.py knows which "
        "published figures belong beside it: openclip (the original ones), tall (those of the "
        "20-task set), transformers (FusionBench's)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing result")
    command.set_defaults(run=_convert)
    return [command]


def _convert(options: argparse.Namespace) -> None:
    # Imported late: it brings two large libraries, for which no other command should wait.
    from apgd.convert import Part, convert

    done = convert(
        options.source,
        options.out,
        part=Part(options.part),
        geometry=geometry_named(options.model) if options.model else None,
        base=options.base,
        family=Family(options.family) if options.family else None,
        overwrite=options.overwrite,
    )
    Console(soft_wrap=True).print(
        f"converted {options.source} ({done.layout}) into {options.out}: {done.geometry.name}, "
        f"{done.parameters} parameters, {done.geometry.activation.value}",
        highlight=False,
        markup=False,
    )
