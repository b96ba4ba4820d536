"""The search: Ray Tune and Optuna around the merge. The only code that knows either.

One call of Tune runs all studies of a run, a study being one method at one seed. Each study has an
Optuna sampler of its own, which sees results in batches of a fixed size, so that what it suggests
does not depend on how many workers there are or which of them is faster. A trial is memoised by its
record, so a search that was killed repeats its suggestions and computes only what is missing.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from apgd.methods import Method, MethodParams, methods
from apgd.methods._method import Limit, Parameter
from tune.evaluators import Purpose, ScoreJob, Workload, mean_accuracy
from tune.records import Kind, Record, RecordStore, Variant

METRIC = "accuracy"
BATCH = 4
"""Trials of a study whose results its sampler sees together."""
_STARTUP_TRIALS = 8
# A trial only waits for a worker, which owns the CPUs or the GPU; but Tune insists on a resource.
_TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Study:
    """The search for one method's parameters at one seed."""

    method: str
    seed: int
    trials: int
    """Merges that are scored, the published settings included."""
    rank: int
    """The smallest min(m, n) over the merged matrices."""
    experts: int
    """N, the number of experts."""

    @property
    def name(self) -> str:
        """Identifier within a run."""
        return f"{self.method}/seed{self.seed}"

    @property
    def published(self) -> MethodParams:
        """The published settings, with everything filled in that follows from the model."""
        return methods[self.method].params().resolved(self.rank, self.experts)


def searched(method: Method) -> tuple[Parameter, ...]:
    """The parameters of a method that a search varies."""
    return tuple(p for p in method.params.declared() if p.search is not None)


def _suggestions(study: Study) -> Callable[[optuna.Trial], None]:
    """Optuna's define-by-run function for a study's parameters."""

    def define(trial: optuna.Trial) -> None:
        for declared in searched(methods[study.method]):
            low, limit = declared.search or (0, 0)
            high = study.rank if isinstance(limit, Limit) else limit
            if declared.kind is int:
                trial.suggest_int(declared.name, int(low), int(high), log=declared.log)
            else:
                trial.suggest_float(declared.name, low, high, log=declared.log)

    return define


def _searcher(study: Study) -> OptunaSearch:
    sampler = optuna.samplers.TPESampler(
        seed=study.seed,
        n_startup_trials=_STARTUP_TRIALS,
        n_ei_candidates=24,
        multivariate=True,
        constant_liar=True,
    )
    published = study.published.as_dict()
    first = {p.name: published[p.name] for p in searched(methods[study.method])}
    return OptunaSearch(
        _suggestions(study),
        metric=METRIC,
        mode="max",
        sampler=sampler,
        points_to_evaluate=[first],
        study_name=study.name,
    )


class _Batches:
    """A study's suggestions in batches of a fixed size.

    Ray's ConcurrencyLimiter tells the searcher as soon as nothing is running, which happens earlier
    with fewer workers; here a batch is told when it is whole, in the order of its suggestions.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.suggested = 0
        self._searcher = _searcher(study)
        self._batch: dict[str, tuple[dict[str, Any] | None, bool] | None] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Parameters; None where all were suggested, or the batch has to finish first."""
        if self.suggested >= self.study.trials or len(self._batch) >= BATCH:
            return None
        self._batch[trial_id] = None
        self.suggested += 1
        params: dict[str, Any] | None = self._searcher.suggest(trial_id)
        return params

    def complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        """Note a result, and tell the sampler when the batch is whole."""
        self._batch[trial_id] = (result, error)
        if len(self._batch) < BATCH or None in self._batch.values():
            return
        for told, outcome in self._batch.items():
            if outcome is not None:
                self._searcher.on_trial_complete(told, result=outcome[0], error=outcome[1])
        self._batch = {}


class StudyRouter(Searcher):
    """Hands out the trials of several studies in turn, each with a free worker.

    Args:
        studies: what is searched.
        workers: number of workers; a trial's `worker` is the index of the one that runs it.
    """

    def __init__(self, studies: Sequence[Study], workers: int) -> None:
        super().__init__(metric=METRIC, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._studies = [_Batches(study) for study in studies]
        self._free = list(range(workers))
        self._live: dict[str, tuple[int, int]] = {}  # trial -> study, worker
        self._turn = 0

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None where nothing can start now."""
        if all(batches.suggested >= batches.study.trials for batches in self._studies):
            return Searcher.FINISHED
        if not self._free:
            return None
        for offset in range(len(self._studies)):
            index = (self._turn + offset) % len(self._studies)
            number = self._studies[index].suggested
            params = self._studies[index].suggest(trial_id)
            if params is None:
                continue
            self._turn = index + 1
            worker = self._free.pop(0)
            self._live[trial_id] = (index, worker)
            return {"study": index, "number": number, "worker": worker, "params": params}
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the trial's study, and free its worker."""
        index, worker = self._live.pop(trial_id)
        self._free.append(worker)
        self._studies[index].complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a search resumes from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a search resumes from its records."""


class MergeTrial(ray_tune.Trainable):
    """A Tune trial: sends its parameters to a worker and waits for the score."""

    def setup(
        self,
        config: dict[str, Any],
        studies: Sequence[Study] = (),
        workload: Workload | None = None,
        workers: Sequence[ActorHandle[Any]] = (),
    ) -> None:
        """Keep what all trials share."""
        self._studies = studies
        self._workload = workload
        self._workers = workers
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial, which saves starting a process for it."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Merge and score once."""
        study = self._studies[self._config["study"]]
        job = trial_job(study, self._config["params"], self._config["number"])
        worker = self._workers[self._config["worker"]]
        accuracy = ray.get(worker.score.remote(self._workload, job))
        return {METRIC: accuracy, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step long: there is nothing to save."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def trial_job(study: Study, params: Mapping[str, float | int | None], number: int) -> ScoreJob:
    """The job of one trial: the study's published settings with `params` in place of them."""
    whole = methods[study.method].parse({**study.published.as_dict(), **params})
    return ScoreJob(
        Purpose.SEARCH,
        study.method,
        Variant.TUNED,
        study.seed,
        tuple(whole.as_dict().items()),
        number,
    )


class _Watcher(ray_tune.Callback):
    """Counts finished trials; an exception in a Tune callback would end the whole search."""

    def __init__(self, on_trial: Callable[[], None]) -> None:
        self._on_trial = on_trial

    def on_trial_complete(self, *_args: Any, **_info: Any) -> None:
        self._on_trial()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that this search never asks for."""
        return {}


def run_searches(
    studies: Sequence[Study],
    workload: Workload,
    workers: Sequence[ActorHandle[Any]],
    scratch: Path,
    on_trial: Callable[[], None],
) -> int:
    """Run the studies' trials; every result is a record of kind TRIAL when this returns.

    Args:
        studies: what is searched.
        workload: what the scores have in common.
        workers: the actors that score; each runs one trial at a time.
        scratch: folder for Tune's own state, which is removed at the end.
        on_trial: called as each trial finishes.

    Returns:
        The number of trials that failed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            MergeTrial, studies=tuple(studies), workload=workload, workers=tuple(workers)
        ),
        _TRIAL_RESOURCES,
    )
    tuner = ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=StudyRouter(studies, len(workers)),
            metric=METRIC,
            mode="max",
            num_samples=sum(study.trials for study in studies),
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="search",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[_Watcher(on_trial)],
            failure_config=ray_tune.FailureConfig(max_failures=2),
        ),
    )
    failed: int = tuner.fit().num_errors
    shutil.rmtree(scratch, ignore_errors=True)
    return failed


def trials_of(store: RecordStore, study: Study, inputs: Mapping[str, str]) -> list[Record]:
    """The finished trials of a study, in the order in which they were suggested."""
    found = [
        record
        for record in store.all(Kind.TRIAL)
        if (record.method, record.seed) == (study.method, study.seed)
        and dict(record.inputs) == dict(inputs)
    ]
    return sorted(found, key=lambda record: int(record.details["number"]))


def best_trial(trials: Sequence[Record], tasks: Sequence[str]) -> Record:
    """The trial with the best mean accuracy on validation data; of equals, the earliest.

    Raises:
        RuntimeError: where there is none, because every trial failed.
    """
    if not trials:
        raise RuntimeError("no trial of the search finished; the Ray logs have the reasons")
    return max(trials, key=lambda trial: (mean_accuracy(trial, tasks), -trial.details["number"]))
