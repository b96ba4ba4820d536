"""The command `apgd data`: fetch and check what suites need."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from apgd.data import Split
from apgd.data.hub import HubDataset
from apgd.data.prepared import Report, SplitState, prepare, verify
from apgd.errors import InputError
from apgd.suites import Suite, suites

_WIDE = 140
_OK = "ok"

T = TypeVar("T")


def add_data(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> list[argparse.ArgumentParser]:
    """Add `data prepare` and `data verify`; returns their parsers."""
    data = commands.add_parser("data", help="fetch and check the data of a suite")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    parsers = []
    for name, run, text in (
        ("prepare", _prepare, "download what is missing, check it, and keep it on this machine"),
        ("verify", _verify, "hash and count again what is on this machine"),
    ):
        action = actions.add_parser(name, help=text, description=text.capitalize() + ".")
        action.add_argument("suite", metavar="SUITE", help="a name that `apgd suites` lists")
        action.add_argument(
            "--task",
            action="append",
            metavar="NAME",
            help="only this task; may be given several times",
        )
        action.set_defaults(run=run)
        parsers.append(action)
    parsers[0].add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take local copies: DIR holds a folder per task, with <split>/<class>/<image>, "
        "<split>*.parquet files, or what save_to_disk wrote",
    )
    return parsers


def _prepare(options: argparse.Namespace) -> None:
    suite = suites[options.suite]
    console = Console(stderr=True, soft_wrap=True)
    if not (datasets := suite.datasets()):
        _chosen(options.task, {task.name: task for task in (*suite.tasks, *suite.unseen)})
        console.print(f"{suite.name}: nothing to download: made on first use")
        return
    chosen = _chosen(options.task, datasets)
    sources = _sources(options.source, chosen)
    states: dict[str, tuple[SplitState, ...]] = {}
    failures: list[str] = []
    with _progress(console) as progress:
        for task, dataset in chosen.items():
            try:
                # What comes from elsewhere, or was kept for long, is hashed again.
                prepare(dataset, sources.get(task), thorough=True, report=progress(task))
            except InputError as error:
                failures.append(str(error))
            states[task] = verify(dataset)
    _show(states)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(chosen)} data sets of suite {suite.name} could not be "
            "prepared:\n" + "\n".join(f"- {failure}" for failure in failures)
        )


def _verify(options: argparse.Namespace) -> None:
    suite = suites[options.suite]
    if not (datasets := suite.datasets()):
        _verify_made_here(suite, options.task)
        return
    chosen = _chosen(options.task, datasets)
    states = {task: verify(dataset) for task, dataset in chosen.items()}
    _show(states)
    every = [(task, state) for task, found in states.items() for state in found]
    wrong = [(task, state) for task, state in every if state.problem is not None]
    if wrong:
        damaged = [f"- {t}, split {s.name}: {s.problem}\n" for t, s in wrong if s.split is not None]
        absent = len(wrong) - len(damaged)
        raise InputError(
            f"of {len(every)} splits of suite {suite.name}, {absent} are not prepared and "
            f"{len(damaged)} are not in order\n{''.join(damaged)}"
            f"`apgd data prepare {suite.name}` fetches what is missing or damaged"
        )


def _verify_made_here(suite: Suite, names: list[str] | None) -> None:
    """Read every split, which hashes it, and makes it anew where it is missing or damaged."""
    table = _table()
    for name, task in _chosen(names, {t.name: t for t in (*suite.tasks, *suite.unseen)}).items():
        for split in Split:
            if split is Split.TRAIN and task in suite.unseen:
                continue
            state = _OK if suite.has_examples(name, split) else "ok, made now"
            examples = suite.examples(name, split)
            table.add_row(
                name, split, str(len(examples)), str(len(task.class_names)), "–",
                examples.sha256[:12], state,
            )  # fmt: skip
    _print(table)


def _chosen(names: list[str] | None, known: Mapping[str, T]) -> dict[str, T]:
    for name in names or ():
        if name not in known:
            raise InputError(f"unknown task {name!r}; known are: {', '.join(known)}")
    return {name: value for name, value in known.items() if names is None or name in names}


def _sources(folder: Path | None, chosen: Mapping[str, HubDataset]) -> dict[str, Path]:
    """The local copy of every task."""
    if folder is None:
        return {}
    found = {}
    for task in chosen:
        candidates = (folder / task, folder / f"{task}.parquet")
        there = [path for path in candidates if path.exists()]
        if not there:
            raise InputError(
                f"--from must hold a folder {task} for the task of that name, but {folder} has "
                f"none; name the tasks that it holds with --task"
            )
        found[task] = there[0]
    return found


def _show(states: Mapping[str, tuple[SplitState, ...]]) -> None:
    table = _table()
    for task, found in states.items():
        for state in found:
            split = state.split
            cells = ["–"] * 4
            if split is not None:
                classes = "–" if split.classes is None else str(split.classes)
                cells = [str(split.rows), classes, _size(split.bytes), split.content_sha256[:12]]
            # What is wrong may be told in words of the data.
            texts = (task, state.name, *cells, state.problem or _OK)
            table.add_row(*map(Text, texts))
    _print(table)


def _table() -> Table:
    right = [Column(name, justify="right") for name in ("rows", "classes", "size")]
    return Table("task", "split", *right, "hash", Column("state", overflow="fold"), box=None)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # a file has no width
    console.print(table)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class _Progress(Protocol):
    def __call__(self, task: str) -> Report:
        """What is told of one task's rows."""


@contextmanager
def _progress(console: Console) -> Iterator[_Progress]:
    """A bar per split on a terminal, and nothing in a file."""
    with Bar(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        bars = {}

        def of_task(task: str) -> Report:
            def report(split: str, done: int, total: int) -> None:
                if (task, split) not in bars:
                    bars[task, split] = bar.add_task(f"{task} {split}", total=total)
                bar.update(bars[task, split], completed=done)

            return report

        yield of_task
