"""Whole reproductions as jobs of known length, for experiments/benchmark_scale.py."""

import tune  # isort: skip  # noqa: F401 - sets what Ray reads when it is imported

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from apgd.suites import suites
from experiments.sleeping_worker import Naps
from tune.experiment import Experiment
from tune.planning.plan import plan_of
from tune.planning.work import rung_plans
from tune.records import Kind, RecordStore
from tune.search.stage import studies_of
from tune.search.studies import Study

RECORDED = Path(__file__).parent / "recorded_durations.json"
"""Durations of a real run, see `recorded`."""


@dataclass(frozen=True)
class Case:
    """What is replayed."""

    name: str
    source: str
    """Where durations are from."""
    before: tuple[tuple[str, tuple[float, ...]], ...]
    """Stages before the search: name, and seconds of every job."""
    studies: tuple[Study, ...]
    naps: Naps
    after: tuple[tuple[str, tuple[float, ...]], ...]
    """Stages that follow on the search."""

    @property
    def work(self) -> float:
        """Seconds of all jobs, if no trial is stopped."""
        jobs = sum(sum(seconds) for _name, seconds in (*self.before, *self.after))
        return jobs + sum(
            self.naps.seconds(index, number, rung)
            for index, study in enumerate(self.studies)
            for number in range(study.trials)
            for rung in range(len(study.rungs))
        )

    def scaled(self, factor: float) -> "Case":
        """The same with all durations so many times as long."""

        def jobs(
            stages: tuple[tuple[str, tuple[float, ...]], ...],
        ) -> tuple[tuple[str, tuple[float, ...]], ...]:
            return tuple((name, tuple(factor * s for s in seconds)) for name, seconds in stages)

        naps = tuple(
            tuple(tuple(factor * s for s in rungs) for rungs in trials)
            for trials in self.naps.by_study
        )
        return Case(
            self.name, self.source, jobs(self.before), self.studies, Naps(naps), jobs(self.after)
        )


def recorded(run: Path, experts: Path) -> dict[str, Any]:
    """Durations of a real run of mini_vision, in seconds.

    Args:
        run: its folder, with searches of DOGE TA and rows of all methods.
        experts: the folder of its experts.
    """
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    suite = suites["mini_vision"]
    training: dict[str, list[float]] = {task.name: [] for task in suite.tasks}
    for path in sorted(experts.glob("mini_vision-*/manifest.json")):
        expert = json.loads(path.read_text(encoding="utf-8"))
        if len(expert["spec"]["tasks"]) == 1:
            training[expert["spec"]["tasks"][0]].append(expert["seconds"])
    store = RecordStore(run)
    rows: dict[str, list[float]] = {}
    merges: dict[str, list[float]] = {}
    for record in store.all(Kind.EVALUATION):
        if len(record.scores) == len(suite.tasks):
            rows.setdefault(record.method, []).append(sum(record.seconds.values()))
            merges.setdefault(record.method, []).append(record.seconds["merge"])
    trials, rates = [], []
    for path in sorted((run / "records" / "rungs").glob("*/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rungs = found["rungs"] if isinstance(found, dict) else found
        trials.append([round(sum(rung["seconds"].values()), 4) for rung in rungs])
        rates += [
            rung["seconds"]["score"] / (len(rung["judged"]) * rung["share"]) for rung in rungs
        ]
    units = {s["name"]: s["seconds"] * manifest["machine"]["workers"] for s in manifest["stages"]}
    data = next(s for s in manifest["stages"] if s["name"] == "data")
    vectors = next(s for s in manifest["stages"] if s["name"] == "singular vectors")
    return {
        "from": f"{manifest['command']}, {manifest['finished']}",
        "machine": manifest["machine"]["description"],
        "data": units["data"] / (data["done"] + data["reused"]),
        "experts": {task: [round(s, 2) for s in seconds] for task, seconds in training.items()},
        "singular vectors": units["singular vectors"] / vectors["done"],
        "trials": {"doge_ta": trials},
        "validation": fmean(rates),
        "rows": {method: fmean(seconds) for method, seconds in rows.items()},
        "merges": {method: fmean(seconds) for method, seconds in merges.items()},
    }


def case_of(name: str) -> Case:
    """A reproduction: of mini_vision as recorded, of others as calculated."""
    return _recorded_case() if name == "mini_vision" else _calculated_case(name)


def _recorded_case() -> Case:
    """The 8-task reproduction of mini_vision as it was measured.

    Of methods that were not searched then, trials are put together from the merge and the scores of
    so many validation images, which were.
    """
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    experiment = Experiment(suite="mini_vision")
    suite, studies = experiment.full_suite, studies_of(experiment, experiment.full_suite)
    naps = []
    for study in studies:
        if study.method in found["trials"]:
            naps.append(tuple(tuple(rungs) for rungs in found["trials"][study.method]))
        else:
            merge = found["merges"][study.method]
            plans = rung_plans(study)
            naps.append((tuple(merge + p.settings * p.share * found["validation"] for p in plans),))
    rows = {**found["rows"], "pretrained": found["rows"]["experts"]}
    jobs = [*experiment.references, *experiment.methods, *(study.method for study in studies)]
    splits = 3 * len(suite.tasks) + len(suite.unseen)
    vectors = next(s for s in plan_of(_planned("mini_vision")).stages if "vectors" in s.name)
    return Case(
        "mini_vision",
        f"measured: {found['machine']}, {found['from']}",
        (
            ("data", (found["data"],) * splits),
            ("experts", tuple(fmean(found["experts"][task.name]) for task in suite.tasks)),
            ("singular vectors", (found["singular vectors"],) * len(vectors.jobs)),
        ),
        tuple(studies),
        Naps(tuple(naps)),
        (("evaluation", tuple(sorted((rows[job] for job in jobs), reverse=True))),),
    )


def _planned(suite: str) -> Experiment:
    """An experiment of which nothing is done yet."""
    nowhere = Path(tempfile.gettempdir()) / "nothing-is-here"
    return Experiment(suite=suite, plan_for="8xL4", run_dir=nowhere / "run", experts_dir=nowhere)


def _calculated_case(suite: str) -> Case:
    """A reproduction with ViT-B/32 on L4 GPUs as the plan has it."""
    experiment = _planned(suite)
    plan = plan_of(experiment)
    stages = {stage.name: tuple(stage.known) for stage in plan.stages}
    studies = studies_of(experiment, experiment.full_suite)
    naps, start = [], 0
    for study in studies:
        mean = fmean(stages["search"][start : start + study.trials])
        start += study.trials
        plans = rung_plans(study)
        whole = sum(p.settings * p.share * p.reached for p in plans)
        naps.append((tuple(mean * p.settings * p.share / whole for p in plans),))
    before = tuple((name, stages[name]) for name in ("experts", "singular vectors"))
    return Case(
        suite, "calculated, not measured: ViT-B/32 on L4 GPUs", before, tuple(studies),
        Naps(tuple(naps)), (("evaluation", stages["evaluation"]),),
    )  # fmt: skip
