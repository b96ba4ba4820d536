"""What of a run is on disk already: looked up as the run does it, without writing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apgd.data import Split
from apgd.external import OWN
from apgd.finetune import Expert, find_expert
from apgd.suites import Suite
from apgd.training_statistics import statistic_spec, statistics_file
from tune.evaluators import Workload
from tune.experiment import Experiment
from tune.experts import Experts, data_cells, model_specs, wanted_statistics
from tune.objectives import Objective
from tune.records import Kind, Record, RecordStore
from tune.searches import study_key
from tune.stages import make_workload
from tune.studies import Study


@dataclass(frozen=True)
class Found:
    """What there is."""

    ready: int
    """Splits whose examples are on this machine."""
    experts: Mapping[tuple[int, str], Expert]
    """Finished models by seed and task, of those that the run fine-tunes itself."""
    statistics: int
    """Training statistics."""
    workload: Workload | None
    """What all scores have in common; None as long as a model is missing, because then no score
    can be there."""
    unsure: str
    """Why it is not known which experts there are; empty where it is."""


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
        return Found(len(there), {}, 0, None, unsure)
    train = {t.name: suite.examples(t.name, Split.TRAIN).sha256 for t in suite.tasks}
    specs = model_specs(experiment, suite, train)
    root = experiment.experts_dir.resolve()
    found = {
        key: expert
        for key, spec in specs.items()
        if (expert := find_expert(spec, root)) is not None
    }
    complete = len(found) == len(specs) and experiment.experts == OWN
    statistics = _statistics(experiment, suite, train, found)
    workload = None
    if complete and len(there) == len(cells) and not _fetched:
        hashes = {(task, str(split)): suite.examples(task, split).sha256 for task, split in cells}
        workload = make_workload(experiment, suite, hashes, found)
    return Found(len(there), found, statistics, workload, "")


def _why_unsure(suite: Suite, there: Sequence[tuple[str, Split]]) -> str:
    if not suite.has_base():
        return "the base model is not on this machine"
    missing = [task.title for task in suite.tasks if (task.name, Split.TRAIN) not in there]
    if missing:
        return f"training data are not on this machine ({', '.join(missing)})"
    return ""


def _statistics(
    experiment: Experiment, suite: Suite, train: Mapping[str, str], experts: Experts
) -> int:
    root = experiment.experts_dir.resolve() / "statistics"
    return sum(
        statistics_file(
            statistic_spec(
                need, suite, task, experts[seed, task].sha256, train[task],
                experiment.statistic_settings,
            ),
            root,
        )
        is not None
        for seed, need, task in wanted_statistics(experiment, suite)
        if (seed, task) in experts
    )  # fmt: skip


def trials_of(study: Study, found: Found, store: RecordStore) -> list[Record]:
    """The trials of a study that have a record, in the order of their numbers."""
    if found.workload is None:
        return []
    key = study_key(study, found.workload)
    names = {f"{key}#{number}" for number in range(study.trials)}
    trials = [r for r in store.all(Kind.TRIAL) if r.inputs.get("trial") in names]
    return sorted(trials, key=lambda record: int(record.details["number"]))
