"""Where the records of ablations come from: the workers, the search, or an earlier run's files."""

from collections.abc import Mapping, Sequence

from apgd.methods import Value
from apgd.suites import Suite
from tune.ablations.bench import Cell
from tune.ablations.settings import SUBJECT, AblationSettings
from tune.evaluators import ScoreJob, Workload
from tune.experiment import merged_rank
from tune.progress import Display
from tune.records import Kind, Record, RecordStore
from tune.search.stage import search_studies, study_key
from tune.search.studies import Study, best_trial
from tune.workers.pool import Job, WorkerPool


class NotDoneError(Exception):
    """Something would have to be computed where nothing is to be."""


class Scoring:
    """Scores jobs on the workers, and knows which records the report is made of.

    Args:
        settings: already cut down.
        suite: what is merged and tested.
        workload: what all scores have in common.
        pool: the workers.
        store: where records are.
        display: shows stages.
    """

    def __init__(
        self,
        settings: AblationSettings,
        suite: Suite,
        workload: Workload,
        pool: WorkerPool,
        store: RecordStore,
        display: Display,
    ) -> None:
        self._settings, self._suite, self._workload = settings, suite, workload
        self._pool, self._store, self._display = pool, store, display
        self.computes = True
        """Whether what is missing is computed; otherwise `NotDoneError` is raised."""
        self.records: dict[str, Record] = {}
        """Every record that was asked for, by key."""

    def missing(self, jobs: Sequence[ScoreJob]) -> list[ScoreJob]:
        """Those without a record."""
        return [job for job in jobs if self._store.get(*self._place(job)) is None]

    def _place(self, job: ScoreJob) -> tuple[Kind, str]:
        return job.purpose.kind, job.key(self._workload)

    def score(self, stage: str, jobs: Sequence[ScoreJob]) -> None:
        """See to it that every job has a record.

        Raises:
            NotDoneError: where one has none, and nothing is to be computed.
        """
        missing = self.missing(jobs)
        if missing and not self.computes:
            raise NotDoneError(f"{len(missing)} merges of {stage}")
        if self.computes:
            with self._display.stage(stage, len(jobs), len(jobs) - len(missing)) as view:
                self._pool.run(
                    [Job("score", (self._workload, job), f"scoring {job.told}") for job in missing],
                    on_done=lambda _index, _score: view.advance(),
                )
        self._note([self._store.expect(*self._place(job)) for job in jobs])

    def search(self, cells: Sequence[Cell]) -> Mapping[Cell, Mapping[str, Value]]:
        """The best parameters of the subject by seed of the experts and seed of the search.

        Raises:
            NotDoneError: as `score` does.
        """
        wanted = studies(self._settings, self._suite, cells)
        found = [self._trials(study) for study in wanted]
        if any(len(trials) < study.trials for study, trials in zip(wanted, found, strict=True)):
            if not self.computes:
                raise NotDoneError("searches")
            searched = search_studies(
                wanted, self._settings, self._suite, self._workload, self._pool, self._store,
                self._display,
            )  # fmt: skip
            found = [list(one.trials) for one in searched]
        for trials in found:
            self._note(trials)
        return {cell: best_trial(trials).params for cell, trials in zip(cells, found, strict=True)}

    def _trials(self, study: Study) -> list[Record]:
        """What a study has done so far."""
        key = study_key(study, self._workload)
        names = {f"{key}#{number}" for number in range(study.trials)}
        return [
            trial for trial in self._store.all(Kind.TRIAL) if trial.inputs.get("trial") in names
        ]

    def _note(self, records: Sequence[Record]) -> None:
        self.records |= {record.key: record for record in records}


def studies(settings: AblationSettings, suite: Suite, cells: Sequence[Cell]) -> list[Study]:
    """The searches of the cells."""
    return [_study(settings, suite, cell) for cell in cells]


def _study(settings: AblationSettings, suite: Suite, cell: Cell) -> Study:
    expert, search = cell
    return Study(
        SUBJECT, expert, settings.effective_trials, merged_rank(suite), len(suite.tasks),
        tuple(settings.settings_of(suite, SUBJECT).items()),
        search_seed=search, sampler=settings.sampler, rungs=settings.rungs,
        at_once=settings.at_once,
    )  # fmt: skip
