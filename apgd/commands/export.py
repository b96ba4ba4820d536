"""`apgd export`: a merged model as a folder for transformers or open_clip."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from apgd.errors import InputError


def add_export(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add the command, and return it."""
    command = commands.add_parser(
        "export",
        help="write a merged model for transformers or open_clip",
        description="Write a merged CLIP or T5 as a folder that transformers or open_clip loads "
        "offline, with a model card that tells how it was made.",
    )
    command.add_argument("merged", type=Path, metavar="MERGED", help="what apgd merge wrote")
    command.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    command.add_argument(
        "--library",
        choices=("transformers", "open_clip"),
        default="transformers",
        help="who loads it (default: transformers)",
    )
    command.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the base as a folder of transformers or open_clip: the text tower of a CLIP, "
        "configuration and tokenizer of a T5 are taken from it",
    )
    command.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an expert of the merge, so that the card holds its hash; give all of them or none",
    )
    command.add_argument(
        "--summary", type=Path, metavar="FILE", help="what apgd merge --summary wrote"
    )
    command.add_argument(
        "--scores", type=Path, metavar="FILE", help="a JSON object with a figure for each task"
    )
    command.add_argument("--title", help="title of the card")
    command.add_argument(
        "--base-model", metavar="ID", help="the base on the hub, for example google/flan-t5-base"
    )
    command.set_defaults(run=_export)
    return [command]


def _export(options: argparse.Namespace) -> None:
    # Imported late: they bring two large libraries, for which no other command should wait.
    from apgd.export import Library, export, origin_of

    origin = origin_of(
        options.merged,
        title=options.title,
        experts=_experts(options.expert),
        summary=options.summary,
        scores=options.scores,
        base_model=options.base_model,
    )
    library = Library(options.library)
    content = export(options.merged, options.out, library, origin, base=options.base)
    Console(soft_wrap=True).print(
        f"exported {options.merged} into {options.out}: {content.kind} for {content.library}, "
        f"{content.parameters} parameters, {len(origin.experts)} experts",
        highlight=False,
        markup=False,
    )


def _experts(texts: Sequence[str]) -> dict[str, Path]:
    experts: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not (name and path) or name in experts:
            raise InputError(f"--expert must be NAME=PATH, each name once, but got {text!r}")
        experts[name] = Path(path)
    return experts
