"""The order of trials: published settings first, and nothing that depends on timing."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from apgd.methods import Limit, MethodParams, methods, parameter
from tune import search, studies
from tune.evaluators import Purpose
from tune.records import Kind, Record, Variant
from tune.search import BATCH, StudyRouter, _suggestions
from tune.studies import Study, best_trial, searched, trial_job
from tune.trial import METRIC
from tune.workers import Worker


@dataclass(frozen=True, kw_only=True)
class VotesParams(MethodParams):
    votes: int = parameter(1, "of experts", low=1, high=Limit.EXPERTS, search=(1, Limit.EXPERTS))


STUDIES = [
    Study("doge_ta", 0, 10, 128, 8),
    Study("ties", 0, 10, 128, 8),
    Study("task_arithmetic", 1, 10, 128, 8),
]


def play(workers: int, order: random.Random) -> dict[int, list[dict[str, Any]]]:
    """Run a router to its end, finishing live trials in a random order; params by study."""
    router = StudyRouter(STUDIES, workers)
    live: dict[str, dict[str, Any]] = {}
    suggested: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(STUDIES))}
    count, finished = 0, False
    while not finished or live:
        config = None if finished else router.suggest(f"t{count}")
        if config == Searcher.FINISHED:
            finished = True
        elif config is not None:
            assert config["worker"] not in [other["worker"] for other in live.values()]
            assert 0 <= config["worker"] < workers
            assert config["number"] == len(suggested[config["study"]])
            live[f"t{count}"] = config
            suggested[config["study"]].append(config["params"])
            count += 1
            continue
        if live:
            trial = order.choice(sorted(live))
            params = live.pop(trial)["params"]
            score = -sum(abs(value - 0.3) for value in params.values())
            result = {METRIC: score, "training_iteration": 1}
            router.on_trial_result(trial, result)
            router.on_trial_complete(trial, result)
    return suggested


def test_suggestions_do_not_depend_on_workers_or_timing() -> None:
    one = play(1, random.Random(0))
    for workers, seed in ((2, 1), (3, 2), (16, 3)):
        assert play(workers, random.Random(seed)) == one
    assert [len(params) for params in one.values()] == [10, 10, 10]


def test_published_settings_come_first() -> None:
    first = {i: params[0] for i, params in play(2, random.Random(0)).items()}
    assert first[0] == {
        "eta": 0.07,
        "basis_size": 16,
        "keep_ratio": 0.3,
        "iterations": 400,
        "learning_rate": 1e-4,
    }
    assert first[1] == {"coefficient": 0.3, "keep_ratio": 0.2}
    assert first[2] == {"coefficient": 0.3}


def test_what_the_number_of_experts_bounds_is_searched_up_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    votes = dataclasses.replace(methods["ties"], name="votes", params=VotesParams)
    assert votes.params.declared()[0].search_text == "1 to N"
    for module in (search, studies):
        monkeypatch.setattr(module, "methods", {"votes": votes})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        _suggestions(Study("votes", 0, 40, 128, 3))(trial)
    assert {trial.params["votes"] for trial in study.trials} == {1, 2, 3}


def test_trials_stay_in_range_and_differ() -> None:
    for index, params in play(2, random.Random(0)).items():
        method = methods[STUDIES[index].method]
        for values in params:
            method.parse(values).check_rank(128)
        assert len({tuple(values.items()) for values in params}) == len(params)


def test_seeds_suggest_differently() -> None:
    def second(seed: int) -> Any:
        router = StudyRouter([Study("doge_ta", seed, 3, 128, 8)], 1)
        config = router.suggest("a")
        router.on_trial_complete("a", {METRIC: 0.1, "training_iteration": 1})
        assert config["number"] == 0
        return router.suggest("b")["params"]

    assert second(0) == second(0)
    assert second(0) != second(1)


def test_a_study_waits_for_its_batch() -> None:
    router = StudyRouter(STUDIES[:1], 16)
    assert [router.suggest(f"t{i}") is not None for i in range(BATCH + 1)] == [True] * BATCH + [
        False
    ]


def test_trial_jobs_read_validation_only() -> None:
    job = trial_job(STUDIES[0], {"eta": 0.2}, 3)
    assert job.purpose is Purpose.SEARCH
    assert job.purpose.reads == "validation"
    assert dict(job.params)["eta"] == 0.2
    assert dict(job.params)["basis_size"] == 16
    assert {p.name for p in searched(methods["doge_ta"])} == set(dict(job.params)) - {
        "shared_basis_size",
        "solver",
        "tolerance",
    }


def trial(number: int, accuracy: float) -> Record:
    return Record(
        kind=Kind.TRIAL,
        method="ties",
        variant=Variant.TUNED,
        seed=0,
        params={},
        inputs={},
        scores={"validation/a": accuracy, "validation/b": 0.5},
        details={"number": number},
    )


def test_best_trial_is_the_earliest_of_the_best() -> None:
    trials = [trial(0, 0.4), trial(1, 0.6), trial(2, 0.6)]
    assert best_trial(trials, ["a", "b"]).details["number"] == 1


def test_a_handle_of_a_worker_names_types_and_does_not_hold_them() -> None:
    methods = [getattr(Worker, name) for name in vars(Worker) if not name.startswith("_")]
    annotations = [a for method in methods for a in method.__annotations__.values()]
    assert len(annotations) > 10
    assert all(isinstance(annotation, str) for annotation in annotations)
