"""The stages of a run with what is to do in each, from the functions that the run goes by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apgd.external import OWN
from apgd.shapes import merged_shapes
from apgd.suites import Suite
from tune.cluster import Cluster
from tune.evaluators import ScoreJob
from tune.experiment import Experiment
from tune.experts import data_cells, wanted_models, wanted_statistics
from tune.geometry import is_measured
from tune.planning.estimate import UNKNOWN, Basis, Estimate, calculated, measured, worst
from tune.planning.found import Found, trials_of
from tune.planning.machines import Machines
from tune.planning.rates import Rates
from tune.planning.schedule import in_turn, lower_bound
from tune.planning.work import (
    decomposition_work,
    job_examples,
    job_merging,
    longest_first,
    scoring_work,
    statistic_work,
    training_work,
    trial_examples,
    trial_merging,
)
from tune.records import Kind, Record, RecordStore, Variant
from tune.references import MULTI_TASK, REFERENCES
from tune.search.objectives import Objective
from tune.search.stage import Searched, studies_of, wanted_bases
from tune.search.studies import Study, best_trial, judged_in_full
from tune.stages import distinct_rows, evaluation_jobs, geometry_jobs
from tune.workers.sharing import sharing_of


@dataclass(frozen=True)
class PlannedJob:
    """One job."""

    name: str
    """For people."""
    takes: Estimate


@dataclass(frozen=True)
class PlannedStage:
    """One stage, under the name that the run gives it."""

    name: str
    jobs: tuple[PlannedJob, ...]
    """What is to do, in the order in which it is handed out."""
    reused: int
    """Jobs that earlier runs have done."""
    workers: int
    """How many work on it at a time."""
    note: str = ""

    @property
    def basis(self) -> Basis:
        """Where its figures come from; of several, the least certain."""
        return worst([job.takes.basis for job in self.jobs])

    @property
    def known(self) -> list[float]:
        """Seconds of those jobs of which they are known."""
        return [job.takes.seconds for job in self.jobs if job.takes.seconds is not None]

    @property
    def makespan(self) -> float:
        """Seconds from the first job's beginning to the last one's end, of those known."""
        return in_turn(self.known, self.workers).makespan

    @property
    def bound(self) -> float:
        """What the known jobs take at least on so many workers."""
        return lower_bound(self.known, self.workers)


@dataclass(frozen=True)
class Terms:
    """What all stages are planned with.

    Args:
        experiment: the run.
        suite: its suite.
        machines: where it would take place.
        cluster: how they are cut into workers.
        rates: what was measured there.
        found: what is on disk.
        store: the records of the run folder.
    """

    experiment: Experiment
    suite: Suite
    machines: Machines
    cluster: Cluster
    rates: Rates
    found: Found
    store: RecordStore

    @property
    def share(self) -> float:
        """The part of a machine's processor that a worker has; a GPU is a worker's own."""
        if self.cluster.gpus:
            return 1.0
        return self.cluster.threads_per_worker / self.machines.cpus_each

    @property
    def scoring_memory(self) -> tuple[int, str]:
        """GPU memory in bytes of a scoring worker, and how that is known."""
        return sharing_of(self.experiment, self.suite).needed([self.machines.device_name])

    @property
    def scorers(self) -> Cluster:
        """The machines as they are cut into workers while merges are scored."""
        sharing, (needed, _how) = sharing_of(self.experiment, self.suite), self.scoring_memory
        return sharing.cut(self.cluster, self.machines.gpu_bytes, needed)

    def scoring_workers(self, takes: Sequence[Estimate], most: int | None = None) -> int:
        """Workers for a stage of scoring.

        What was measured was measured with as many on a GPU as share it; a calculated time is that
        of a whole GPU, which then has one worker.
        """
        all_measured = worst([estimate.basis for estimate in takes]) is Basis.MEASURED
        workers = self.scorers.workers
        if not all_measured:
            workers = min(workers, self.cluster.workers)
        return max(1, min(workers, workers if most is None else most))

    def unit(self, stage: str) -> Estimate:
        """What a unit of a stage takes that only earlier runs can tell."""
        seconds = self.rates.units.get(stage)
        return UNKNOWN if seconds is None else measured(seconds)

    def scoring(self, examples: float | None) -> Estimate:
        """What so many examples take."""
        if examples is not None and self.rates.example is not None:
            return measured(examples * self.rates.example)
        work = None if examples is None else scoring_work(self.suite, examples)
        return calculated(work, self.machines.device, self.share)

    def row(self, job: ScoreJob) -> Estimate:
        """What scoring a row or a merge takes."""
        if not job.tasks and job.purpose.kind is Kind.EVALUATION and job.method in self.rates.rows:
            return measured(self.rates.rows[job.method])
        merges = job.method not in REFERENCES
        if job.method in self.rates.merges:
            merging = measured(self.rates.merges[job.method])
        else:
            settings = self.experiment.settings_of(self.suite, job.method) if merges else {}
            work = job_merging(self.suite, job, settings)
            merging = calculated(work, self.machines.device, self.share)
        limits = (self.experiment.limit, self.experiment.corruption_limit)
        return merging + self.scoring(job_examples(self.suite, job, *limits))

    def trial(self, study: Study) -> Estimate:
        """What a trial of a study takes on average."""
        if study.method in self.rates.trials:
            return measured(self.rates.trials[study.method])
        work = trial_merging(self.suite, study)
        merging = calculated(work, self.machines.device, self.share)
        return merging + self.scoring(trial_examples(self.experiment, self.suite, study))


def data_stage(terms: Terms) -> PlannedStage:
    """Examples that are to be fetched or rendered."""
    experiment, suite = terms.experiment, terms.suite
    cells, fetched = data_cells(
        suite,
        corrupted=experiment.corruptions,
        unseen_validation=Objective.UNSEEN in experiment.objectives,
    )
    ready = terms.found.ready
    to_do = [cell for cell in cells if not suite.has_examples(*cell)]
    names = [f"{task}, {split}" for task, split in (*to_do, *fetched)]
    # What is ready is read and checked all the same, which only a measurement tells apart.
    takes = UNKNOWN if names else terms.unit("data")
    note = "downloads take what the network takes" if names and suite.datasets() else ""
    if not names and takes.seconds is not None:
        note = f"reading takes about {takes.seconds * len(cells) / terms.cluster.workers:.0f} s"
    jobs = tuple(PlannedJob(name, takes) for name in names)
    return PlannedStage("data", jobs, ready, max(1, min(terms.cluster.cpus, 8)), note)


def fetching_stage(terms: Terms) -> PlannedStage | None:
    """Experts from elsewhere that are brought in."""
    if terms.experiment.experts == OWN:
        return None
    jobs = tuple(PlannedJob(task.name, UNKNOWN) for task in terms.suite.tasks)
    return PlannedStage("experts", jobs, 0, 1, f"from {terms.experiment.experts}, if not there yet")


def training_stage(terms: Terms) -> PlannedStage | None:
    """Models that are to be fine-tuned."""
    experiment, suite, found = terms.experiment, terms.suite, terms.found
    wanted = wanted_models(experiment, suite)
    if not wanted:
        return None
    settings = experiment.finetune_settings(suite)
    jobs = []
    for (seed, task), steps in wanted.items():
        if (seed, task) in found.experts:
            continue
        if terms.rates.step is not None:
            takes = measured(terms.rates.step * steps)
        else:
            work = training_work(suite, settings, steps)
            takes = calculated(work, terms.machines.device, terms.share)
        jobs.append(PlannedJob(f"{task}, seed {seed}", takes))
    name = "experts" if experiment.experts == OWN else MULTI_TASK
    return PlannedStage(name, tuple(jobs), len(found.experts), terms.cluster.workers, found.unsure)


def statistics_stage(terms: Terms) -> PlannedStage | None:
    """Training statistics that are to be computed."""
    experiment, suite = terms.experiment, terms.suite
    wanted = wanted_statistics(experiment, suite)
    if not wanted:
        return None
    jobs = []
    for seed, need, task in wanted:
        if (seed, need, task) in terms.found.statistics:
            continue
        takes = terms.unit("statistics")
        if takes.seconds is None:
            work = statistic_work(suite, need, experiment.statistic_settings)
            takes = calculated(work, terms.machines.device, terms.share)
        jobs.append(PlannedJob(f"{need.name.lower()}, {task}, seed {seed}", takes))
    reused = len(terms.found.statistics)
    return PlannedStage("statistics", tuple(jobs), reused, terms.cluster.workers)


def search_stages(
    terms: Terms, studies: Sequence[Study]
) -> tuple[list[PlannedStage], dict[Study, list[Record]]]:
    """Singular vectors and trials of some studies; and the trials that there are."""
    done = {study: trials_of(study, terms.found, terms.store) for study in studies}
    left = {study: study.trials - len(trials) for study, trials in done.items()}
    trials = [
        PlannedJob(f"{study.name}, trial {number}", takes)
        for study, count in left.items()
        for takes in [terms.trial(study)]
        for number in range(study.trials - count, study.trials)
    ]
    stages = []
    if trials:
        shapes = merged_shapes(terms.suite)
        vectors = []
        for seed, name in wanted_bases(studies, terms.suite):
            takes = terms.unit("singular vectors")
            if takes.seconds is None:
                work = decomposition_work(shapes[name], len(terms.suite.tasks))
                takes = calculated(work, terms.machines.device, terms.share)
            vectors.append(PlannedJob(f"{name}, seed {seed}", takes))
        if vectors:
            workers = terms.scoring_workers([job.takes for job in vectors])
            stages.append(PlannedStage("singular vectors", tuple(vectors), 0, workers))
    at_once = sum(min(study.at_once, count) for study, count in left.items() if count)
    workers = terms.scoring_workers([job.takes for job in trials], at_once or None)
    reused = sum(map(len, done.values()))
    stages.append(PlannedStage("search", tuple(trials), reused, workers))
    return stages, done


def evaluation_stages(terms: Terms, trials: Mapping[Study, Sequence[Record]]) -> list[PlannedStage]:
    """Rows of the table, and where the experiment wants it their geometry."""
    experiment, workload = terms.experiment, terms.found.workload
    winners = [_winner(study, found) for study, found in trials.items()]
    jobs = evaluation_jobs(experiment, winners)
    finished = {study.name for study, found in trials.items() if len(found) == study.trials}

    def settled(job: ScoreJob) -> bool:
        """Whether its parameters are known already."""
        return job.variant is not Variant.TUNED or f"{job.method}/seed{job.seed}" in finished

    if workload is None:
        there = set[ScoreJob]()
    else:
        there = {
            job
            for job in jobs
            if settled(job)
            and terms.store.get_whole(Kind.EVALUATION, job.key(workload)) is not None
        }
    rows = distinct_rows([job for job in jobs if settled(job)])
    missing = [merge for merge, alike in rows.items() if not there & set(alike)]
    missing += [job for job in jobs if not settled(job)]
    limits = (experiment.limit, experiment.corruption_limit)
    missing = longest_first(missing, terms.suite, *limits)
    planned = tuple(
        PlannedJob(f"{job.method}, {job.variant}, seed {job.seed}", terms.row(job))
        for job in missing
    )
    workers = terms.scoring_workers([job.takes for job in planned])
    open_rows = sum(not settled(job) for job in jobs)
    note = f"up to: {open_rows} follow from the search" if open_rows else ""
    stages = [PlannedStage("evaluation", planned, len(there), workers, note)]
    chosen = geometry_jobs(experiment, jobs)
    if chosen:
        left = [
            job
            for job in chosen
            if workload is None
            or not settled(job)
            or not is_measured(experiment.folder, job.key(workload))
        ]
        held = tuple(PlannedJob(f"{job.method}, seed 0", terms.unit("geometry")) for job in left)
        stages.append(
            PlannedStage(
                "geometry", held, len(chosen) - len(left),
                terms.scoring_workers([job.takes for job in held]),
            )
        )  # fmt: skip
    return stages


def _winner(study: Study, trials: Sequence[Record]) -> Searched:
    """A study with its best trial; the published settings stand for one that is not known yet."""
    if len(trials) == study.trials and any(map(judged_in_full, trials)):
        return Searched(study, tuple(trials), best_trial(trials, study.objectives[0]))
    stands_for = Record(
        kind=Kind.TRIAL, method=study.method, variant=Variant.TUNED, seed=study.seed,
        params=study.published.as_dict(), inputs={}, scores={},
    )  # fmt: skip
    return Searched(study, (), stands_for)


def report_stage(terms: Terms) -> PlannedStage:
    """The report."""
    return PlannedStage("report", (PlannedJob("report", terms.unit("report")),), 0, 1)


def stages_of(terms: Terms) -> list[PlannedStage]:
    """All stages of an experiment's run, in their order."""
    stages = [data_stage(terms), fetching_stage(terms), training_stage(terms)]
    stages.append(statistics_stage(terms))
    searching, trials = search_stages(terms, studies_of(terms.experiment, terms.suite))
    stages += [*searching, *evaluation_stages(terms, trials), report_stage(terms)]
    return [stage for stage in stages if stage is not None]
