"""What of a run is on disk already: looked up as the run does it, without writing anything.

What is damaged counts as missing; the run puts it aside and makes it again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from apgd.checkpoints import load_sealed
from apgd.data import Split
from apgd.errors import DamagedError
from apgd.evidence import Need
from apgd.external import OWN
from apgd.finetune import Expert, find_expert
from apgd.suites import Suite
from apgd.training_statistics import StatisticSpec, statistic_spec
from tune.evaluators import Workload
from tune.experiment import Experiment
from tune.experts import Experts, data_cells, model_specs, wanted_statistics
from tune.records import Kind, Record, RecordStore
from tune.search.objectives import Objective
from tune.search.stage import study_key
from tune.search.studies import Study
from tune.stages import make_workload

What = TypeVar("What")


@dataclass(frozen=True)
class Found:
    """What there is."""

    ready: int
    """Splits whose examples are on this machine."""
    experts: Mapping[tuple[int, str], Expert]
    """Finished models by seed and task, of those that the run fine-tunes itself."""
    statistics: frozenset[tuple[int, Need, str]]
    """Training statistics by seed, kind and task."""
    workload: Workload | None
    """What all scores have in common; None as long as a model is missing, because then no score
    can be there."""
    unsure: str
    """Why it is not known which experts there are; empty where it is."""
    damaged: int
    """Experts and statistics that are there, but damaged."""


def look(experiment: Experiment, suite: Suite) -> Found:
    """Look for what earlier runs left."""
    cells, _fetched = data_cells(
        suite,
        corrupted=experiment.corruptions,
        unseen_validation=Objective.UNSEEN in experiment.objectives,
    )
    there = [cell for cell in cells if suite.has_examples(*cell)]
    unsure = _why_unsure(suite, there)
    if unsure:
        return Found(len(there), {}, frozenset(), None, unsure, 0)
    train = {t.name: suite.examples(t.name, Split.TRAIN).sha256 for t in suite.tasks}
    specs = model_specs(experiment, suite, train)
    root = experiment.experts_dir.resolve()
    damages: list[DamagedError] = []
    found = {
        key: expert
        for key, spec in specs.items()
        if (expert := _whole(partial(find_expert, spec, root), damages)) is not None
    }
    complete = len(found) == len(specs) and experiment.experts == OWN
    statistics = _statistics(experiment, suite, train, found, damages)
    workload = None
    if complete and len(there) == len(cells) and not _fetched:
        hashes = {(task, str(split)): suite.examples(task, split).sha256 for task, split in cells}
        workload = make_workload(experiment, suite, hashes, found)
    return Found(len(there), found, statistics, workload, "", len(damages))


def _why_unsure(suite: Suite, there: Sequence[tuple[str, Split]]) -> str:
    if not suite.has_base():
        return "the base model is not on this machine"
    missing = [task.title for task in suite.tasks if (task.name, Split.TRAIN) not in there]
    if missing:
        return f"training data are not on this machine ({', '.join(missing)})"
    return ""


def _whole(find: Callable[[], What | None], damages: list[DamagedError]) -> What | None:
    """What is found; None where it is damaged, which is noted."""
    try:
        return find()
    except DamagedError as damage:
        damages.append(damage)
        return None


def _statistics(
    experiment: Experiment,
    suite: Suite,
    train: Mapping[str, str],
    experts: Experts,
    damages: list[DamagedError],
) -> frozenset[tuple[int, Need, str]]:
    root, settings = experiment.experts_dir.resolve() / "statistics", experiment.statistic_settings
    specs = {
        (seed, need, task): statistic_spec(
            need, suite, task, experts[seed, task].sha256, train[task], settings
        )
        for seed, need, task in wanted_statistics(experiment, suite)
        if (seed, task) in experts
    }
    return frozenset(
        key
        for key, spec in specs.items()
        if _whole(partial(_find_statistic, spec, root), damages) is not None
    )


def _find_statistic(spec: StatisticSpec, root: Path) -> Path | None:
    """The file of a statistic below `root`, or None.

    Raises:
        DamagedError: where it is not what was written.
    """
    path = spec.path(root)
    if not path.exists():
        return None
    load_sealed(path, f"the training statistic {spec.need.name} of {spec.task}")
    return path


def trials_of(study: Study, found: Found, store: RecordStore) -> list[Record]:
    """The trials of a study that have a record, in the order of their numbers."""
    if found.workload is None:
        return []
    key = study_key(study, found.workload)
    names = {f"{key}#{number}" for number in range(study.trials)}
    whole = (store.get_whole(Kind.TRIAL, key) for key in store.keys(Kind.TRIAL))
    trials = [r for r in whole if r is not None and r.inputs.get("trial") in names]
    return sorted(trials, key=lambda record: int(record.details["number"]))
