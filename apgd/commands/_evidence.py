"""What a merge is given besides weights: read from files, or made of a suite's data."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from apgd.checkpoints import load_weights, open_weights, read_metadata
from apgd.data import Split
from apgd.data.cache import cache_root
from apgd.errors import InputError
from apgd.evidence import Evidence, Need
from apgd.files import sha256_path
from apgd.merging import Progress
from apgd.methods import Method
from apgd.suites import Suite, suites
from apgd.training_statistics import (
    StatisticSettings,
    StatisticSpec,
    collect_to,
    statistic_spec,
    statistics_file,
)
from apgd.unlabelled import UnlabelledInputs

_DEFAULTS = StatisticSettings()


@dataclass(frozen=True)
class EvidencePlan:
    """What there will be, and what has to be computed for it."""

    evidence: Evidence
    """Complete once `gather` was called; files are named that may not be there yet."""
    missing: tuple[tuple[StatisticSpec, Path], ...] = ()
    """Statistics that are not in the cache, and the experts that they are of."""

    def reporting_to(self, progress: Progress) -> Evidence:
        """The evidence, with a callback for the steps of an adaptation."""
        if self.evidence.inputs is None:
            return self.evidence
        return replace(self.evidence, inputs=replace(self.evidence.inputs, report=progress))

    def gather(self, options: argparse.Namespace, console: Console) -> None:
        """Compute what is missing, with a bar on a terminal."""
        with Bar(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        ) as bar:  # fmt: skip
            for number, (spec, expert) in enumerate(self.missing, start=1):
                text = f"statistics of {spec.task} ({number} of {len(self.missing)})"
                if not console.is_terminal:
                    console.print(text, highlight=False, markup=False)
                task = bar.add_task(text, total=None)

                def report(done: int, total: int, task: TaskID = task) -> None:
                    bar.update(task, completed=done, total=total)

                collect_to(
                    _root(), spec, suites[options.suite], expert,
                    device=options.device, report=report,
                )  # fmt: skip
                bar.remove_task(task)


def add_evidence_options(command: argparse.ArgumentParser) -> None:
    """Add the options with which methods get what they need besides weights."""
    command.add_argument(
        "--statistics",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="for a method that needs statistics of training data: an expert's name, and the "
        "safetensors file of them; give one for each expert, or --suite to have them computed",
    )
    command.add_argument(
        "--statistics-examples",
        type=int,
        metavar="K",
        help="training examples of each task of the suite from which statistics are computed "
        f"(default: {_DEFAULTS.examples})",
    )
    command.add_argument(
        "--inputs",
        choices=[str(split) for split in Split],
        help="for a method that adapts to unlabelled inputs: those of which split of the suite's "
        "tasks (default: test, as published)",
    )


def evidence_from(
    options: argparse.Namespace, method: Method, experts: Mapping[str, Path]
) -> EvidencePlan:
    """What the options give to a method; `Method.check` judges whether that is enough.

    Args:
        options: those of `apgd merge`.
        method: what it is for.
        experts: their files or folders, by name.

    Raises:
        InputError: for statistics that the method has no use for, that are not an expert's or not
            of the right kind, or where experts are not named after tasks of the suite.
    """
    for option, given, needed in (
        ("--statistics", options.statistics, method.needs.is_statistic),
        ("--statistics-examples", options.statistics_examples, method.needs.is_statistic),
        ("--inputs", options.inputs, method.needs is Need.INPUTS),
    ):
        if given and not needed:
            raise InputError(
                f"{option} must only be given to a method that needs them, but {method.name} "
                f"needs {method.needs}"
            )
    if method.needs.is_statistic:
        return _statistics(options, method.needs, experts)
    if method.needs is Need.INPUTS and options.suite is not None:
        return EvidencePlan(Evidence(inputs=_inputs(options, experts)))
    return EvidencePlan(Evidence())


def _inputs(options: argparse.Namespace, experts: Mapping[str, Path]) -> UnlabelledInputs:
    suite = suites[options.suite]
    _check_named_after_tasks(suite, experts)
    model = suite.build_model()
    model.load_state_dict(load_weights(suite.base_path(), f"the base of suite {suite.name}"))
    heads = {name: suite.head(model, suite.task(name)).to(options.device) for name in experts}
    split = Split(options.inputs or Split.TEST)
    return UnlabelledInputs(
        model=model.to(options.device),
        heads=heads,
        inputs={name: suite.examples(name, split).unlabelled() for name in experts},
        label=f"{suite.name}, {split}",
    )


def _check_named_after_tasks(suite: Suite, experts: Mapping[str, Path]) -> None:
    tasks = [task.name for task in suite.tasks]
    for name in experts:
        if name not in tasks:
            raise InputError(
                f"experts must be named after tasks of suite {suite.name}, whose data the method "
                f"needs, but got {name}; its tasks are: {', '.join(tasks)}"
            )


def _statistics(
    options: argparse.Namespace, need: Need, experts: Mapping[str, Path]
) -> EvidencePlan:
    if options.statistics:
        return EvidencePlan(Evidence(statistics=_from_files(options.statistics, need, experts)))
    if options.suite is None:
        return EvidencePlan(Evidence())
    suite = suites[options.suite]
    count = options.statistics_examples
    settings = _DEFAULTS if count is None else StatisticSettings(examples=count)
    _check_named_after_tasks(suite, experts)
    specs = {
        name: statistic_spec(
            need, suite, name, sha256_path(path), suite.examples(name, Split.TRAIN).sha256, settings
        )
        for name, path in experts.items()
    }
    return EvidencePlan(
        Evidence(statistics={name: spec.path(_root()) for name, spec in specs.items()}),
        tuple((s, experts[n]) for n, s in specs.items() if statistics_file(s, _root()) is None),
    )


def _from_files(given: list[str], need: Need, experts: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise InputError(f"--statistics must be NAME=PATH, but got {text!r}")
        if name in found or name not in experts:
            raise InputError(
                f"--statistics must name each expert once, but got {name!r}; experts are: "
                f"{', '.join(experts)}"
            )
        found[name] = Path(path)
        open_weights(found[name], f"the statistics of {name}")
        kind = read_metadata(found[name]).get("need", need.name) if Path(path).is_file() else None
        if kind not in (need.name, None):
            raise InputError(
                f"--statistics must be of the kind {need.name} for this method, but "
                f"{path} holds {kind}"
            )
    missing = [name for name in experts if name not in found]
    if missing:
        raise InputError(
            f"--statistics must be given for every expert, but {', '.join(missing)} has none"
        )
    return found


def _root() -> Path:
    return cache_root() / "statistics"
