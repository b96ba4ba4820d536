"""The command `apgd suites`: what suites there are, and what each needs."""

import argparse
import re
from functools import cache

import torch
from rich.console import Console
from rich.table import Column, Table

from apgd.budget import finetune_budget, wants_gpu
from apgd.data.hub import HubDataset
from apgd.suites import Suite, suites


def add_suites(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add `suites`; returns its parser in a list."""
    text = "list the suites, or say what one consists of and needs"
    command = commands.add_parser("suites", help=text, description=text.capitalize() + ".")
    command.add_argument("name", nargs="?", metavar="SUITE", help="the suite to tell more of")
    command.set_defaults(run=_run)
    return [command]


def _run(options: argparse.Namespace) -> None:
    console = Console()
    if options.name is None:
        _list(console)
    else:
        _describe(console, suites[options.name])


def _list(console: Console) -> None:
    table = Table(
        Column("suite", no_wrap=True),
        Column("size", justify="right", no_wrap=True),
        Column("download", no_wrap=True),
        "what",
        box=None,
    )
    for suite in sorted(suites.values(), key=_natural):
        table.add_row(
            f"[bold]{suite.name}[/bold]",
            _count(suite),
            "yes" if suite.datasets() else "no",
            suite.title,
        )
    console.print(table)
    console.print("\n`apgd suites SUITE` says more of one: its tasks, its needs, its commands.")


def _natural(suite: Suite) -> list[str | int]:
    """Embedded suites first, and 8 before 14."""
    parts = re.split(r"(\d+)", suite.name)
    numbers: list[str | int] = [int(p) if p.isdigit() else p for p in parts]
    return ["" if not suite.datasets() else "~", 0, *numbers]


def _describe(console: Console, suite: Suite) -> None:
    console.print(f"[bold]{suite.name}[/bold]  {suite.title}, {_count(suite)} parameters\n")
    datasets = suite.datasets()
    table = Table("task", "title", "classes", "score", "expert", "data", box=None)
    for task in (*suite.tasks, *suite.unseen):
        table.add_row(
            task.name,
            task.title,
            str(len(task.class_names)),
            task.metric,
            suite.published_experts.get(task.name, "own") if task in suite.tasks else "none",
            _origin(datasets[task.name]) if task.name in datasets else "made here",
        )
    console.print(table)
    settings = suite.finetune
    kind = f"LoRA of rank {settings.lora.rank}" if settings.lora else "in full"
    console.print(
        f"\nfine-tuning: {kind}, {settings.steps} steps of {settings.batch_size} examples, "
        f"learning rate {settings.learning_rate:g}, {settings.schedule}",
        soft_wrap=True,
        highlight=False,
    )
    if suite.datasets():
        budget = finetune_budget(suite, suite.finetune)
        console.print(f"{budget.sentence}\n", soft_wrap=True, highlight=False)
    for what, command in _commands(suite):
        console.print(f"{what + ':':<22}{command}", soft_wrap=True, markup=False, highlight=False)


def _commands(suite: Suite) -> list[tuple[str, str]]:
    run = f"experiments/full_repro.py --suite {suite.name}"
    commands = []
    if suite.datasets():
        commands.append(("fetch the data", f"uv run apgd data prepare {suite.name}"))
    commands.append(("on this machine", f"uv run {run}"))
    if suite.published_experts:
        commands.append(("published experts", f"uv run {run} --experts published --compare"))
    script, _, options = run.partition(" ")
    gpus = " --gpus 8" if wants_gpu(suite) else ""
    submit = f"uv run --extra aws ray submit cluster.yaml {script} -- {options}{gpus}"
    commands.append(("on a cluster", submit))
    return commands


def _origin(dataset: HubDataset) -> str:
    where = dataset.hub_id or str(dataset.local)
    return f"{where} ({dataset.config})" if dataset.config else where


def _count(suite: Suite) -> str:
    alike = next(s.name for s in suites.values() if s.stored_as == suite.stored_as)
    count = _parameters(alike)
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} B"


@cache
def _parameters(name: str) -> int:
    """How many parameters a suite's model has; it is built without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in suites[name].build_model().parameters())
