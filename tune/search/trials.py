"""Trials of a search, rung by rung, where the task vectors are."""

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apgd.checkpoints import is_finite
from apgd.data import Split
from apgd.data.reader import SplitReader
from apgd.files import read_sealed, write_sealed
from apgd.methods import Value, methods
from apgd.shared_work import Bases, SharedWork
from apgd.sweep import Trajectory
from apgd.task_vectors import Delta
from tune.evaluators import Evaluator, Purpose, ScoreJob, Workload
from tune.records import Variant
from tune.search.objectives import Objective, ValidationScores, objective_value
from tune.search.rungs import Judged, RungResult, Setting, settings_at
from tune.search.studies import Params, Study

_TRAJECTORIES = 2
"""Trials whose merge is kept between rungs: one is scored while another waits for its verdict."""
_TRAJECTORY_COPIES = 6
"""Δ, Adam's two means and Δ at three rungs, each as large as what is merged."""
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Trial:
    """One trial of a study."""

    study: Study
    key: str
    """The study's key, see `Study.key`."""
    number: int
    params: tuple[tuple[str, Value], ...]
    """What was suggested."""

    def path(self, run_dir: Path) -> Path:
        """Where its rungs are kept as they are done."""
        return run_dir / "records" / "rungs" / self.key / f"{self.number}.json"

    def settings(self) -> Params:
        """All parameters of the method; those of its sweep with their published values."""
        return self.study.whole(dict(self.params))


def rungs_done(trial: Trial, run_dir: Path) -> list[RungResult]:
    """The rungs of a trial that are on disk.

    None where they are those of other parameters under its number, as after a failed trial was done
    again in a new database.
    """
    path = trial.path(run_dir)
    if not path.exists():
        return []
    found = read_sealed(path)
    if found["params"] != dict(trial.params):
        return []
    return [RungResult.from_json(values) for values in found["rungs"]]


def write_rungs(trial: Trial, run_dir: Path, done: Sequence[RungResult]) -> None:
    """Put the rungs of a trial on disk, for `rungs_done`.

    More of them that are there already are left: a worker that stood still for a while comes after
    another one that has gone on in its place, with the same results.
    """
    if len(rungs_done(trial, run_dir)) > len(done):
        return
    rungs = [asdict(result) for result in done]
    write_sealed(trial.path(run_dir), {"params": dict(trial.params), "rungs": rungs})


class TrialScorer:
    """Judges trials; the last ones' merges are kept, so that they can go on.

    Args:
        evaluator: has the model, heads, examples and task vectors.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._shared: dict[int, SharedWork] = {}
        self._most_running = _TRAJECTORIES if self._has_room() else 1
        self._running: OrderedDict[tuple[str, int], Trajectory] = OrderedDict()
        self._experts: dict[tuple[int, float], dict[str, float]] = {}

    @property
    def workload(self) -> Workload:
        """What the scores have in common."""
        return self._evaluator.workload

    def _has_room(self) -> bool:
        """Whether memory allows more than one merge under way."""
        one = _TRAJECTORY_COPIES * self._evaluator.merged_bytes
        return _TRAJECTORIES * one <= _MEMORY_SHARE * self._evaluator.room

    def share_bases(self, seed: int, bases: Bases) -> None:
        """Take over the singular vectors of a seed's task vectors, which others have computed."""
        if seed not in self._shared:
            self._shared[seed] = SharedWork(self._evaluator.task_vectors(seed), bases)

    def rung(self, trial: Trial, rung: int) -> RungResult:
        """Judge a rung of a trial, and those before it that are not on disk yet.

        Raises:
            RuntimeError: where merged weights, or an objective, are not finite.
        """
        run_dir = self.workload.run_dir
        done = rungs_done(trial, run_dir)
        while len(done) <= rung:
            done.append(self._judge(trial, done))
            write_rungs(trial, run_dir, done)
        return done[rung]

    def _judge(self, trial: Trial, earlier: Sequence[RungResult]) -> RungResult:
        study, method = trial.study, methods[trial.study.method]
        share = study.rungs.shares[len(earlier)]
        own = trial.settings()
        wanted = settings_at(study.rungs, method, own, earlier, keep_own=trial.number == 0)
        reader = self._evaluator.reader(Purpose.SEARCH, share)
        judged: list[Judged] = []
        cells: list[Mapping[str, float]] = []
        seconds = {"merge": 0.0, "score": 0.0}
        for setting in wanted:
            known = _known(earlier, setting, share)
            if known is not None:
                judged.append(known)
                cells.append(earlier[-1].scores)
                continue
            started = time.perf_counter()
            delta = self._delta(trial, setting, reader)
            merged = time.perf_counter()
            found = self._scores(study, delta, reader)
            values = _finite({o: objective_value(o, found) for o in study.objectives})
            judged.append(Judged(setting=setting, values=values))
            cells.append(_cells(found))
            seconds["merge"] += merged - started
            seconds["score"] += time.perf_counter() - merged
        best = max(range(len(judged)), key=lambda i: (judged[i].values[0], -i))
        return RungResult(
            share=share, judged=tuple(judged), best=best, scores=cells[best],
            seconds=seconds, reads=dict(reader.reads),
        )  # fmt: skip

    def _delta(self, trial: Trial, setting: Setting, reader: SplitReader) -> Delta:
        """θ − θ_0 of a trial at a setting, going on from what is kept of its merge."""
        place = (trial.key, trial.number)
        method = methods[trial.study.method]
        sweep = method.sweep(method.parse(trial.settings()))
        growing = None if sweep is None else sweep.growing
        amount = None if growing is None else int(setting[growing] or 0)
        late = {name: value for name, value in setting.items() if name != growing}
        run = self._running.get(place)
        if run is None or not run.reaches(amount):
            run = self._begin(trial, reader)
        self._running[place] = run
        self._running.move_to_end(place)
        while len(self._running) > self._most_running:
            self._running.popitem(last=False)
        delta = run.delta(amount, late)
        for name, change in delta.items():
            if not is_finite(change):
                raise RuntimeError(f"merged weights must be finite, but those of {name} are not")
        return delta

    def _begin(self, trial: Trial, reader: SplitReader) -> Trajectory:
        study, method = trial.study, methods[trial.study.method]
        params = method.parse(trial.settings())
        sweep = method.sweep(params)
        if sweep is not None:
            return sweep.begin(self._shared_work(study.seed), params)
        job = ScoreJob(
            Purpose.SEARCH, study.method, Variant.TUNED, study.seed,
            tuple(params.as_dict().items()),
        )  # fmt: skip
        return Merged(self._evaluator.delta(job, reader.whole()))

    def _shared_work(self, seed: int) -> SharedWork:
        if seed not in self._shared:
            self._shared[seed] = SharedWork(self._evaluator.task_vectors(seed))
        return self._shared[seed]

    def _scores(self, study: Study, delta: Delta, reader: SplitReader) -> ValidationScores:
        evaluator = self._evaluator
        relative = Objective.WORST_TASK in study.objectives
        experts = self._of_experts(study.seed, reader) if relative else {}
        evaluator.load(delta)
        tasks = tuple(evaluator.workload.experts_of(study.seed))
        unseen = evaluator.unseen if Objective.UNSEEN in study.objectives else ()

        def mean(task: str) -> float:
            return evaluator.score(task, reader.examples(task, Split.VALIDATION))

        return ValidationScores(
            split=Split.VALIDATION,
            merged={task: mean(task) for task in tasks},
            unseen={task: mean(task) for task in unseen},
            experts=experts,
        )

    def _of_experts(self, seed: int, reader: SplitReader) -> dict[str, float]:
        """Every merged task's own expert, on the examples that the merge is judged on."""
        place = (seed, reader.share)
        if place not in self._experts:
            self._experts[place] = {
                task: self._evaluator.expert_score(
                    seed, task, reader.examples(task, Split.VALIDATION)
                )
                for task in self.workload.experts_of(seed)
            }
        return self._experts[place]


class Merged(Trajectory):
    """A merge that has no settings.

    Args:
        delta: θ − θ_0.
    """

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    def reaches(self, amount: int | None) -> bool:
        """Always, for there is none."""
        return amount is None

    def delta(self, amount: int | None, late: Mapping[str, Any]) -> Delta:  # noqa: ARG002
        """θ − θ_0."""
        return self._delta


def _known(earlier: Sequence[RungResult], setting: Setting, share: float) -> Judged | None:
    """What is known of a setting from a rung with the same share."""
    same = (judged for rung in earlier if rung.share == share for judged in rung.judged)
    return next((judged for judged in same if judged.setting == setting), None)


def _finite(values: Mapping[Objective, float]) -> tuple[float, ...]:
    """The objectives' values, which a sampler can only take where they are numbers."""
    for objective, value in values.items():
        if not math.isfinite(value):
            raise RuntimeError(f"objectives must be finite, but {objective} is {value}")
    return tuple(values.values())


def _cells(scores: ValidationScores) -> dict[str, float]:
    """Scores by cell, as records have them."""
    named = {**scores.merged, **scores.unseen}
    return {f"{scores.split}/{task}": score for task, score in named.items()}
