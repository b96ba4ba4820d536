"""The search: Ray Tune and Optuna around the merge.

Only this module and tune.trial know Tune, and only this one knows Optuna.

One call of Tune runs all studies of a run, a study being one method at one seed. Each study has an
Optuna sampler of its own, which sees results in batches of a fixed size, so that what it suggests
does not depend on how many workers there are or which of them is faster. A trial is memoised by its
record, so a search that was killed repeats its suggestions and computes only what is missing.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from apgd.methods import Limit, methods
from tune.evaluators import Workload
from tune.studies import Study, searched, trial_job
from tune.trial import METRIC, MergeTrial

BATCH = 4
"""Trials of a study whose results its sampler sees together."""
_STARTUP_TRIALS = 8
# A trial only waits for a worker, which owns the CPUs or the GPU; but Tune insists on a resource.
_TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


def _suggestions(study: Study) -> Callable[[optuna.Trial], None]:
    """Optuna's define-by-run function for a study's parameters."""
    limits = {Limit.RANK: study.rank, Limit.EXPERTS: study.experts}

    def define(trial: optuna.Trial) -> None:
        for declared in searched(methods[study.method]):
            low, limit = declared.search or (0, 0)
            high = limits[limit] if isinstance(limit, Limit) else limit
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


class _Journal(ray_tune.Callback):
    """Notes what became of every trial, by study and number."""

    def __init__(self, on_trial: Callable[[], None]) -> None:
        self._on_trial = on_trial
        self.params: dict[tuple[int, int], dict[str, float | int]] = {}
        self.failed: list[tuple[int, int]] = []

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        **_info: Any,
    ) -> None:
        """Called by Tune with a trial that returned a score."""
        config = trial.config
        self.params[config["study"], config["number"]] = dict(config["params"])
        self._on_trial()

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        **_info: Any,
    ) -> None:
        """Called by Tune with a trial that failed and is not tried again."""
        self.failed.append((trial.config["study"], trial.config["number"]))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that this search never asks for."""
        return {}


def run_searches(
    studies: Sequence[Study],
    workload: Workload,
    workers: Sequence[ActorHandle[Any]],
    scratch: Path,
    on_trial: Callable[[], None],
) -> dict[Study, list[str]]:
    """Run the studies' trials; every result is a record of kind TRIAL when this returns.

    Args:
        studies: what is searched.
        workload: what the scores have in common.
        workers: the actors that score; each runs one trial at a time.
        scratch: folder for Tune's own state, which is removed at the end.
        on_trial: called as each trial finishes.

    Returns:
        For every study, the keys of its trials' records in the order of their suggestion.

    Raises:
        RuntimeError: where trials failed. The others are kept; with fewer trials than another, a
            method would be compared unfairly.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    journal = _Journal(on_trial)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            MergeTrial, shared=ray.put((tuple(studies), workload)), workers=tuple(workers)
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
            callbacks=[journal],
            failure_config=ray_tune.FailureConfig(max_failures=2),
        ),
    )
    errors = tuner.fit().errors
    if errors or journal.failed:
        numbers = ", ".join(f"{studies[i].name} #{number}" for i, number in journal.failed)
        reason = str(errors[0]).strip().splitlines()[-1] if errors else "see Ray's logs"
        raise RuntimeError(
            f"{len(journal.failed)} trials failed ({numbers}): {reason}; the others are kept, "
            f"and the same command tries these again"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        study: [
            trial_job(study, journal.params[index, number], number).key(workload)
            for number in range(study.trials)
        ]
        for index, study in enumerate(studies)
    }
