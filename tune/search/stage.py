"""The stage that searches every method's parameters."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from apgd.errors import InputError
from apgd.files import content_key
from apgd.methods import methods
from apgd.shapes import merged_shapes
from apgd.suites import Suite
from tune.cluster import plural
from tune.evaluators import Workload
from tune.experiment import Experiment, merged_rank, run_id
from tune.progress import Display
from tune.records import SHARED_SECONDS, Kind, Record, RecordStore, Variant
from tune.search.rungs import RungResult
from tune.search.sampling import Outcome, Sampling, most_trials
from tune.search.storage import open_storage
from tune.search.studies import Study, best_trial, judged_in_full, searched
from tune.search.trials import Trial, rungs_done
from tune.search.tuner import run_searches
from tune.workers.introductions import own_identity
from tune.workers.pool import Job, WorkerPool
from tune.workers.process import Shared

_STORE_SHARE = 0.5
"""Singular vectors are shared where they take no more of the object store than this."""


@dataclass(frozen=True)
class Searched:
    """A finished study."""

    study: Study
    trials: tuple[Record, ...]
    """In the order in which they were suggested."""
    best: Record
    """The best trial by validation."""


def search(
    experiment: Experiment,
    suite: Suite,
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Searched]:
    """Search the parameters of every method that has some."""
    studies = studies_of(experiment, suite)
    return search_studies(studies, experiment, suite, workload, pool, store, display)


def studies_of(experiment: Experiment, suite: Suite) -> list[Study]:
    """An experiment's studies: every method that has something to search, at every seed."""
    rank = merged_rank(suite)
    return [
        Study(
            method,
            seed,
            experiment.effective_trials,
            rank,
            len(suite.tasks),
            tuple(experiment.settings_of(suite, method).items()),
            sampler=experiment.sampler,
            objectives=experiment.objectives,
            rungs=experiment.rungs,
            at_once=experiment.at_once,
        )
        for seed in range(experiment.seeds)
        for method in experiment.methods
        if searched(methods[method])
    ]


def search_studies(
    studies: Sequence[Study],
    experiment: Experiment,
    suite: Suite,
    workload: Workload,
    pool: WorkerPool,
    store: RecordStore,
    display: Display,
) -> list[Searched]:
    """Run what is left of some studies.

    Raises:
        RuntimeError: where every trial of a study failed that could have been its best.
    """
    studies = [
        replace(study, trials=int(min(study.trials, most_trials(study)))) for study in studies
    ]
    keys = [study_key(study, workload) for study in studies]
    storage, folder_id = open_storage(experiment, display.say), run_id(experiment.folder)
    samplings = [
        # Several run folders may share a database; their records are comparable all the same.
        Sampling(study, _storage_name(suite, study, content_key([key, folder_id])), storage)
        for study, key in zip(studies, keys, strict=True)
    ]
    left = [i for i, sampling in enumerate(samplings) if not sampling.finished]
    total = sum(study.trials for study in studies)
    with display.stage(
        "search", total, sum(min(s.written, s.study.trials) for s in samplings)
    ) as stage:
        if left:
            some = [studies[i] for i in left]
            _say_who_idles(some, len(pool.handles), display)

            def on_finish(index: int, number: int, outcome: Outcome) -> Mapping[str, Any]:
                stage.advance()
                trial = _trial(samplings[left[index]], keys[left[index]], number)
                record = trial_record(trial, outcome, workload)
                store.add(record)
                return {"record": record.key, **_notes(record)}

            shared = Shared(
                studies=tuple(some),
                keys=tuple(keys[i] for i in left),
                workload=workload,
                # Of all studies: bases must not depend on which of them are left.
                bases=shared_bases(studies, suite, workload, pool, display),
            )
            scratch = experiment.folder / "tune"
            with pool.lent() as workers:
                run_searches(
                    [samplings[i] for i in left], shared, workers, scratch, on_finish,
                    display.say, own_identity(),
                )  # fmt: skip
    for sampling, key in zip(samplings, keys, strict=True):
        _complete(sampling, key, workload, store)
    return [_searched(sampling, store, display) for sampling in samplings]


def _trial(sampling: Sampling, key: str, number: int) -> Trial:
    return Trial(sampling.study, key, number, tuple(sampling.params(number).items()))


def _complete(sampling: Sampling, key: str, workload: Workload, store: RecordStore) -> None:
    """Make records again that are not there any more, of the rungs that are."""
    for number in range(sampling.study.trials):
        if store.get(Kind.TRIAL, sampling.notes(number)["record"]) is not None:
            continue
        trial, outcome = _trial(sampling, key, number), sampling.outcome(number)
        if len(rungs_done(trial, workload.run_dir)) < len(outcome.rungs):
            raise InputError(
                f"trial {number} of {sampling.study.name} must have its record or its rungs in "
                f"{store.root}, but both are gone; another --run-dir makes them again"
            )
        store.add(trial_record(trial, outcome, workload))


def _say_who_idles(studies: Sequence[Study], workers: int, display: Display) -> None:
    at_once = sum(min(study.at_once, study.trials) for study in studies)
    wanted = -(-2 * workers // len(studies))
    if at_once < 2 * workers and any(
        study.at_once < min(wanted, study.trials) for study in studies
    ):
        display.say(
            f"{plural(workers, 'worker')} could have {2 * workers} trials under way, but only "
            f"{at_once} may be, so that some will wait; --at-once {wanted} keeps all of them busy "
            f"(another search, as suggestions then know less)"
        )


def _searched(sampling: Sampling, store: RecordStore, display: Display) -> Searched:
    study = sampling.study
    trials = tuple(
        store.expect(Kind.TRIAL, sampling.notes(number)["record"]) for number in range(study.trials)
    )
    failed = [trial for trial in trials if not trial.scores]
    reasons = "; ".join(dict.fromkeys(str(trial.details["error"]) for trial in failed))
    if not any(map(judged_in_full, trials)):
        raise RuntimeError(f"no trial of {study.name} was judged in full: {reasons}")
    if failed:
        display.say(f"{len(failed)} of {len(trials)} trials of {study.name} failed: {reasons}")
    return Searched(study, trials, best_trial(trials, study.objectives[0]))


def trial_record(trial: Trial, outcome: Outcome, workload: Workload) -> Record:
    """What became of a trial, as a record.

    Its parameters and scores are those of its best setting at the last rung that it reached.
    """
    study = trial.study
    done = _rungs_of(trial, outcome, workload)
    details: dict[str, Any] = {
        "number": trial.number,
        "reads": _sums(rung.reads for rung in done),
    }
    if outcome.error is not None:
        details["error"] = outcome.error
    elif done:
        details |= {
            "share": done[-1].share,
            "stopped": not outcome.complete,
            "objectives": dict(zip(study.objectives, done[-1].values, strict=True)),
            "rungs": [
                {
                    "share": rung.share,
                    "best": rung.best,
                    "settings": [
                        {
                            "params": judged.setting,
                            "objectives": dict(zip(study.objectives, judged.values, strict=True)),
                        }
                        for judged in rung.judged
                    ],
                }
                for rung in done
            ],
        }
    succeeded = outcome.error is None and bool(done)
    return Record(
        kind=Kind.TRIAL,
        method=study.method,
        variant=Variant.TUNED,
        seed=study.seed,
        params=study.whole(dict(trial.params), done[-1].setting if succeeded else None),
        inputs={**workload.inputs_of(study.seed), "trial": f"{trial.key}#{trial.number}"},
        scores=done[-1].scores if succeeded else {},
        seconds=_sums(rung.seconds for rung in done),
        details=details,
    )


def _rungs_of(trial: Trial, outcome: Outcome, workload: Workload) -> list[RungResult]:
    """The rungs of an outcome, for which shared storage may keep this machine waiting a little.

    Raises:
        FileNotFoundError: where they do not come.
    """
    until = time.monotonic() + SHARED_SECONDS
    while len(done := rungs_done(trial, workload.run_dir)) < len(outcome.rungs):
        if time.monotonic() > until:
            raise FileNotFoundError(
                f"{trial.path(workload.run_dir)} must hold {len(outcome.rungs)} rungs, but has "
                f"{len(done)}; the run folder must lie on storage that all machines share"
            )
        time.sleep(SHARED_SECONDS / 100)
    return done[: len(outcome.rungs)]


def _sums(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for of_rung in counts:
        for name, count in of_rung.items():
            total[name] = total.get(name, 0) + count
    return total


def _notes(record: Record) -> dict[str, Any]:
    """What is shown of a trial beside its parameters, where a study is looked at in Optuna."""
    if not record.scores:
        return {}
    return {
        "best": dict(record.params),
        "scores": dict(record.scores),
        "share": record.details["share"],
    }


def study_key(study: Study, workload: Workload) -> str:
    """Hash of space, objectives, suite, data, experts and code."""
    return study.key({**workload.inputs_of(study.seed), "suite": workload.suite})


def _storage_name(suite: Suite, study: Study, key: str) -> str:
    """What the study is called in the storage."""
    searched_with = "" if study.search_seed is None else f"-search{study.search_seed}"
    return f"{suite.name}/{study.name}{searched_with}/{key}"


def shared_bases(
    studies: Sequence[Study],
    suite: Suite,
    workload: Workload,
    pool: WorkerPool,
    display: Display,
) -> dict[int, ray.ObjectRef[Any]]:
    """Singular vectors for the largest k of every seed's studies, once per expert and matrix.

    They lie in Ray's object store, from where every worker of a node reads the same memory; where
    they would take too much of it, each worker computes its own.
    """
    most, needed = _most_bases(studies), bases_bytes(studies, suite)
    if not most:
        return {}
    room = min(
        node["Resources"].get("object_store_memory", 0.0)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    )
    if needed > _STORE_SHARE * room:
        display.say(
            f"singular vectors take {needed / 2**30:.1f} GiB, too much for an object store of "
            f"{room / 2**30:.1f} GiB: each worker computes its own"
        )
        return {}
    wanted = wanted_bases(studies, suite)
    with display.stage("singular vectors", len(wanted)) as stage:
        found = pool.run(
            [
                Job("decompose", (workload, seed, name, most[seed]), f"decomposing {name}")
                for seed, name in wanted
            ],
            on_done=lambda _index, _bases: stage.advance(),
        )
    by_seed: dict[int, dict[str, Any]] = {seed: {} for seed in most}
    for (seed, name), bases in zip(wanted, found, strict=True):
        by_seed[seed][name] = bases
    return {seed: ray.put(bases) for seed, bases in by_seed.items()}


def wanted_bases(studies: Sequence[Study], suite: Suite) -> list[tuple[int, str]]:
    """Seed and matrix of the singular vectors that studies share, the longest work first."""
    shapes = merged_shapes(suite)
    names = sorted(shapes, key=lambda name: (-math.prod(shapes[name]), name))
    return [(seed, name) for seed in _most_bases(studies) for name in names]


def bases_bytes(studies: Sequence[Study], suite: Suite) -> int:
    """Size in bytes of the singular vectors that workers of a search share."""
    return sum(
        4 * rows * min(k, rows, columns) * len(suite.tasks)
        for k in _most_bases(studies).values()
        for rows, columns in merged_shapes(suite).values()
    )


def _most_bases(studies: Sequence[Study]) -> dict[int, int]:
    """The largest k by seed, of those seeds that need any."""
    most: dict[int, int] = {}
    for study in studies:
        if study.bases:
            most[study.seed] = max(study.bases, most.get(study.seed, 0))
    return most
