"""What is suggested: a function of numbers and results, and of nothing that timing changes."""

import dataclasses
import random
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from apgd.errors import InputError
from apgd.methods import Limit, MethodParams, methods, parameter
from tests.tune.small_search import Orchard, goes_on, small_study
from tune.search import sampling, studies
from tune.search import storage as storage_module
from tune.search.objectives import Objective
from tune.search.rungs import Rungs
from tune.search.sampling import Outcome, Sampling, most_trials
from tune.search.seen import Seen
from tune.search.stage import _storage_name
from tune.search.studies import Params, Sampler, Study

TWO = (Objective.ACCURACY, Objective.WORST_TASK)
ALL = (*TWO, Objective.UNSEEN)


def score(number: int, params: Mapping[str, Any], rung: int, objectives: int) -> tuple[float, ...]:
    """Any function of a trial will do."""
    base = -sum(abs(float(value) - 0.3) for value in params.values())
    return tuple(base / (1 + i) + 0.1 * rung * np.cos(number + i) for i in range(objectives))


def outcome_of(sampling: Sampling, number: int, failing: set[int]) -> Outcome:
    """The outcome of a trial as a search finds it: rung by rung, until it is stopped."""
    study, params = sampling.study, sampling.params(number)
    rungs: list[tuple[float, ...]] = []
    if number in failing:
        return Outcome(rungs=(), complete=False, error="OSError: no")
    for rung in range(len(study.rungs)):
        rungs.append(score(number, params, rung, len(study.objectives)))
        if not goes_on(sampling, number, [values[0] for values in rungs]):
            break
    return Outcome(rungs=tuple(rungs), complete=len(rungs) == len(study.rungs))


def play(
    study: Study,
    storage: optuna.storages.BaseStorage | None = None,
    *,
    workers: int = 1,
    order: random.Random | None = None,
    most: int | None = None,
    failing: set[int] = frozenset(),  # type: ignore[assignment]
) -> Sampling:
    """Search with so many trials at a time that end in a random order, up to `most` ended ones."""
    order = order or random.Random(0)
    found = Sampling(study, "s", storage)
    live: list[int] = []
    ended = 0
    while most is None or ended < most:
        while len(live) < workers:
            suggested = found.suggest()
            if suggested is None:
                break
            number, params = suggested
            assert number not in live
            assert params == found.params(number)
            live.append(number)
        assert len(live) <= study.at_once
        if not live:
            break
        number = live.pop(order.randrange(len(live)))
        found.finish(number, outcome_of(found, number, failing), {"seen": number})
        found.write()
        ended += 1
    return found


def told(found: Sampling) -> list[tuple[Params, Outcome]]:
    return [(found.params(i), found._outcomes[i]) for i in range(found.study.trials)]


STUDIES = {
    "tpe": small_study(trials=14),
    "random": small_study(trials=10, sampler=Sampler.RANDOM),
    "grid": small_study(trials=10, sampler=Sampler.GRID),
    "several": small_study(trials=12, objectives=TWO),
    "ties": small_study("ties", seed=1, trials=12, at_once=3),
    "in_turn": small_study("task_arithmetic", trials=12, at_once=1),
}


@pytest.fixture(params=list(STUDIES))
def study(request: pytest.FixtureRequest) -> Study:
    return STUDIES[request.param]


def test_suggestions_and_stops_do_not_depend_on_workers_or_timing(study: Study) -> None:
    alone = told(play(study))
    assert len(alone) == study.trials
    for workers, seed in ((2, 1), (3, 2), (20, 3), (20, 4)):
        assert told(play(study, workers=workers, order=random.Random(seed))) == alone


def test_an_interrupted_study_goes_on_as_if_it_had_not_been(study: Study) -> None:
    alone = told(play(study))
    for ended in range(study.trials + 1):
        storage = optuna.storages.InMemoryStorage()
        first = play(study, storage, workers=3, order=random.Random(ended), most=ended)
        # Trials that had ended before an earlier one did are begun again.
        assert first.written <= ended
        second = play(study, storage, workers=2, order=random.Random(ended + 1))
        assert told(second) == alone
        assert second.finished
        kept = optuna.load_study(study_name="s", storage=storage)
        assert [t.number for t in kept.trials] == list(range(study.trials))
        assert [t.user_attrs["seen"] for t in kept.trials] == list(range(study.trials))


def test_interruptions_after_every_trial_change_nothing(study: Study) -> None:
    storage = optuna.storages.InMemoryStorage()
    for _ in range(study.trials):
        play(study, storage, workers=4, order=random.Random(1), most=2)
    assert told(play(study, storage)) == told(play(study))


def test_more_trials_extend_a_study() -> None:
    for study in STUDIES.values():
        storage = optuna.storages.InMemoryStorage()
        play(dataclasses.replace(study, trials=5), storage)
        assert told(play(study, storage)) == told(play(study))


def test_no_more_are_under_way_than_may_be(study: Study) -> None:
    found = Sampling(study, "s")
    numbers = []
    while (suggested := found.suggest()) is not None:
        numbers.append(suggested[0])
    assert numbers == list(range(min(study.at_once, study.trials)))
    if study.trials > study.at_once:
        # The next one needs the first, and no other.
        for number in numbers[1:]:
            found.finish(number, outcome_of(found, number, set()), {})
            assert found.suggest() is None
        found.finish(0, outcome_of(found, 0, set()), {})
        assert found.suggest() is not None


def test_the_storage_gets_trials_in_their_order() -> None:
    storage = optuna.storages.InMemoryStorage()
    found = Sampling(STUDIES["random"], "s", storage)
    for _ in range(4):
        found.suggest()
    kept = optuna.load_study(study_name="s", storage=storage)
    for number, written in ((2, 0), (1, 0), (0, 3), (3, 4)):
        found.finish(number, outcome_of(found, number, set()), {})
        found.write()
        assert len(kept.trials) == found.written == written
    assert all(trial.state.is_finished() for trial in kept.trials)


def test_published_settings_come_first() -> None:
    own = {"eta": 0.07, "basis_size": 1, "learning_rate": 1e-4}
    for name in ("tpe", "random", "grid", "several"):
        assert play(STUDIES[name]).params(0) == own
    assert play(STUDIES["ties"]).params(0) == {"coefficient": 0.3, "keep_ratio": 0.2}
    assert play(STUDIES["in_turn"]).params(0) == {"coefficient": 0.3}
    language = small_study(trials=1, published_params=(("eta", 0.15), ("basis_size", 3)))
    assert play(language).params(0) == {"eta": 0.15, "basis_size": 3, "learning_rate": 1e-4}


def test_the_published_settings_are_never_stopped() -> None:
    found = Sampling(small_study(trials=9), "s")
    assert found.suggest() is not None
    assert goes_on(found, 0, [-1e9])
    assert goes_on(found, 0, [-1e9, -1e9])


def test_a_trial_is_stopped_by_those_that_its_suggestion_knew() -> None:
    found = Sampling(small_study(trials=9, at_once=2), "s")
    for number, value in enumerate([0.5, 0.6, 0.7, 0.8]):
        assert found.suggest() is not None
        found.finish(number, Outcome(rungs=((value,),) * 3, complete=True), {})
    # Trial 4 knows 0, 1 and 2, whose best third is 0.7, and not 3.
    assert found.suggest() is not None
    assert goes_on(found, 4, [0.7])
    assert not goes_on(found, 4, [0.69])
    assert not goes_on(found, 4, [0.9, 0.69])
    # A stopped one counts at the rungs that it reached, a failed one nowhere.
    found.finish(4, Outcome(rungs=((0.9,),), complete=False), {})
    for number in (5, 6, 7):
        assert found.suggest() is not None
        found.finish(number, Outcome(rungs=((9.0,),), complete=False, error="no"), {})
    assert found.suggest() is not None
    assert not goes_on(found, 8, [0.85])  # 0.5, 0.6, 0.7, 0.8 and 0.9
    assert goes_on(found, 8, [0.9])
    assert goes_on(found, 8, [0.9, 0.8])  # 0.5, 0.6, 0.7 and 0.8
    assert not goes_on(found, 8, [0.9, 0.7])


def test_nobody_is_stopped_where_there_are_several_objectives() -> None:
    assert all(outcome.complete for _, outcome in told(play(STUDIES["several"])))
    alike = small_study(trials=12, rungs=Rungs(reduction=1))
    assert all(outcome.complete for _, outcome in told(play(alike)))
    assert not all(outcome.complete for _, outcome in told(play(STUDIES["tpe"])))


def test_seeds_and_samplers_suggest_differently() -> None:
    def suggested(**fields: Any) -> list[Params]:
        found = play(small_study(**{"trials": 4, **fields}))
        return [found.params(i) for i in range(1, 4)]

    own = suggested()
    assert suggested() == own
    assert suggested(seed=1) != own
    assert suggested(search_seed=1) == suggested(seed=1, search_seed=1) == suggested(seed=1)
    assert suggested(sampler=Sampler.GRID) != own
    assert suggested(sampler=Sampler.GRID, seed=1) != suggested(sampler=Sampler.GRID)


def test_trials_stay_in_range_and_differ(study: Study) -> None:
    method = methods[study.method]
    found = play(study)
    seen = [found.params(i) for i in range(study.trials)]
    for params in seen:
        assert set(params) == {declared.name for declared, _, _ in study.space}
        for declared, low, high in study.space:
            assert low <= params[declared.name] <= high  # type: ignore[operator]
            assert isinstance(params[declared.name], declared.kind)
        method.parse(study.whole(params)).check_rank(study.rank)
    if study.sampler is not Sampler.GRID and study.method != "doge_ta":
        assert len({tuple(params.items()) for params in seen}) == study.trials


def test_tpe_learns_and_random_draws_do_not() -> None:
    """TPE's later suggestions lie nearer to the optimum than those without a model."""

    def distance(sampler: Sampler, seed: int) -> float:
        found = Sampling(
            small_study(
                "task_arithmetic", seed, 24, sampler=sampler, at_once=1, rungs=Rungs(reduction=1)
            ),
            "s",
        )
        distances = []
        while (suggested := found.suggest()) is not None:
            number, params = suggested
            distances.append(abs(float(params["coefficient"] or 0) - 0.3))
            found.finish(number, Outcome(rungs=((-distances[-1],),) * 3, complete=True), {})
        return float(np.mean(distances[12:]))

    learned = [distance(Sampler.TPE, seed) for seed in range(3)]
    drawn = [distance(Sampler.RANDOM, seed) for seed in range(3)]
    assert max(learned) < 0.8 * min(drawn)


def test_a_grid_has_every_point_once() -> None:
    study = small_study("ties", trials=36, sampler=Sampler.GRID)
    assert most_trials(study) == 36  # the published settings, and what is not the same as they
    found = play(study)
    points = [tuple(found.params(i).values()) for i in range(1, 36)]
    axes = [declared.points(5, low, high) for declared, low, high in study.space]
    assert [len(axis) for axis in axes] == [5, 7]  # the declared keep ratios
    assert sorted(points) == sorted((a, b) for a in axes[0] for b in axes[1])


def test_points_of_ranges() -> None:
    (eta, low, high), (k, least, most), _ = small_study().space
    assert eta.points(5, low, high) == pytest.approx([0.01, 10**-1.5, 0.1, 10**-0.5, 1.0])
    assert (least, most) == (1, 5)
    assert k.points(5, least, most) == (1, 2, 3, 5)  # integers coincide


def test_parameters_that_a_run_goes_through_are_not_suggested() -> None:
    def names(method: str, **published: Any) -> list[str]:
        study = small_study(method, published_params=tuple(published.items()))
        return [declared.name for declared, _, _ in study.space]

    assert names("doge_ta") == ["eta", "basis_size", "learning_rate"]
    # Those of Adam do not count with the exact solver.
    assert names("doge_ta", solver="exact") == ["eta", "basis_size"]
    assert names("ties") == ["coefficient", "keep_ratio"]
    assert names("task_arithmetic+apgd") == ["coefficient", "apgd_eta"]
    assert names("task_arithmetic+apgd", apgd_solver="exact") == ["coefficient", "apgd_eta"]


def test_the_range_includes_a_published_value_beyond_it() -> None:
    study = small_study(published_params=(("eta", 3.0), ("learning_rate", 1e-7)), trials=12)
    ranges = {declared.name: (low, high) for declared, low, high in study.space}
    assert ranges["eta"] == (0.01, 3.0)
    assert ranges["learning_rate"] == (1e-7, 1e-3)
    found = play(study)
    assert found.params(0)["eta"] == 3.0
    assert found.params(0)["learning_rate"] == 1e-7


@dataclass(frozen=True, kw_only=True)
class VotesParams(MethodParams):
    votes: int = parameter(1, "of experts", low=1, high=Limit.EXPERTS, search=(1, Limit.EXPERTS))


def test_what_the_number_of_experts_bounds_is_searched_up_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    votes = dataclasses.replace(methods["ties"], name="votes", params=VotesParams)
    monkeypatch.setattr(studies, "methods", {"votes": votes})
    found = play(small_study("votes", trials=30, sampler=Sampler.RANDOM))
    assert {found.params(i)["votes"] for i in range(30)} == {1, 2, 3}


def test_failed_trials_are_kept_and_do_not_stop_the_others() -> None:
    failing = {0, 3, 4, 9}
    for study in (STUDIES["tpe"], STUDIES["several"]):
        storage = optuna.storages.InMemoryStorage()
        found = play(study, storage, workers=4, order=random.Random(2), failing=failing)
        assert found.finished
        kept = optuna.load_study(study_name="s", storage=storage).trials
        assert {t.number for t in kept if t.state is TrialState.FAIL} == failing
        assert all(kept[i].user_attrs["error"] == "OSError: no" for i in failing)
        assert all(kept[i].values is None for i in failing)
        assert told(found) == told(play(study, failing=failing))
        assert told(play(study, storage)) == told(found)


def test_values_that_are_no_numbers_do_not_reach_optuna() -> None:
    storage = optuna.storages.InMemoryStorage()
    found = Sampling(STUDIES["tpe"], "s", storage)
    found.suggest()
    nan = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        found.finish(0, Outcome(rungs=((0.1,), (0.2,), (nan,)), complete=True), {})
    assert optuna.load_study(study_name="s", storage=storage).trials == []


def front(points: list[tuple[float, ...]]) -> set[int]:
    """Numbers of the points that no other one dominates."""

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return {i for i, point in enumerate(points) if not any(dominates(p, point) for p in points)}


@pytest.mark.parametrize("objectives", [TWO, ALL])
def test_the_pareto_front_is_that_of_all_pairs(objectives: tuple[Objective, ...]) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = small_study(trials=40, objectives=objectives, sampler=Sampler.RANDOM)
    draws = np.random.default_rng(0).integers(0, 9, (40, len(objectives))) / 10  # with ties
    found = Sampling(study, "s", storage)
    while (suggested := found.suggest()) is not None:
        values = tuple(map(float, draws[suggested[0]]))
        found.finish(suggested[0], Outcome(rungs=((0.0,) * len(values), values), complete=True), {})
    found.write()
    kept = optuna.load_study(study_name="s", storage=storage)
    expected = front([tuple(map(float, row)) for row in draws])
    assert {trial.number for trial in kept.best_trials} == expected
    assert 1 < len(expected) < 20


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.mark.parametrize("name", ["tpe", "several"])
def test_optuna_reads_back_what_was_kept(name: str, database: str) -> None:
    study = dataclasses.replace(STUDIES[name], trials=9, at_once=2)
    found = play(study, optuna.storages.RDBStorage(database), failing={4})
    kept = optuna.load_study(study_name="s", storage=database)
    assert kept.metric_names == list(study.objectives)
    assert [d.name for d in kept.directions] == ["MAXIMIZE"] * len(study.objectives)
    assert [trial.number for trial in kept.trials] == list(range(9))
    for trial, (params, outcome) in zip(kept.trials, told(found), strict=True):
        assert trial.params == params
        assert trial.state is outcome.state
        assert set(trial.distributions) == {declared.name for declared, _, _ in study.space}
        assert trial.user_attrs["seen"] == trial.number
        assert [tuple(v) for v in trial.user_attrs["rungs"]] == list(outcome.rungs)
        if outcome.state is TrialState.COMPLETE:
            assert trial.values == list(outcome.rungs[-1])
        if name == "tpe":
            assert trial.intermediate_values == {i: v[0] for i, v in enumerate(outcome.rungs)}
    states = [trial.state for trial in kept.trials]
    assert states[4] is TrialState.FAIL
    assert (TrialState.PRUNED in states) is (name == "tpe")
    # A second look at the database suggests nothing new.
    again = Sampling(study, "s", optuna.storages.RDBStorage(database))
    assert again.finished
    assert again.suggest() is None
    assert told(again) == told(found)


def test_a_storage_that_does_not_take_a_trial_is_an_error(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = optuna.storages.RDBStorage(database)
    found = Sampling(STUDIES["tpe"], "s", storage)
    found.suggest()

    def full(*_arguments: object, **_named: object) -> int:
        raise optuna.exceptions.StorageInternalError("the disk is full")

    found.finish(0, outcome_of(found, 0, set()), {})
    monkeypatch.setattr(storage_module, "insert", full)
    with pytest.raises(optuna.exceptions.StorageInternalError, match="the disk is full"):
        found.write()
    monkeypatch.undo()
    assert found.written == len(found._kept.trials) == 0  # not even half a trial
    found.write()
    assert found.written == len(found._kept.trials) == 1


def test_several_trials_are_one_transaction(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = optuna.storages.RDBStorage(database)
    found = Sampling(STUDIES["random"], "s", storage)
    for _ in range(6):
        found.suggest()
    for number in range(6):
        found.finish(number, outcome_of(found, number, {2}), {"seen": number})
    commits: list[int] = []
    event.listen(storage.engine, "commit", lambda _connection: commits.append(1))
    found.write()
    assert len(commits) == 1
    # The rows are those that Optuna writes itself.
    apart = optuna.storages.RDBStorage(f"{database}-apart")
    theirs = optuna.create_study(storage=apart, study_name="s")
    theirs.add_trials(found._kept.trials)
    ours = optuna.load_study(storage=database, study_name="s").trials
    fields = ("number", "state", "values", "params", "distributions", "user_attrs")
    for name in (*fields, "intermediate_values", "datetime_start", "datetime_complete"):
        assert [getattr(t, name) for t in ours] == [getattr(t, name) for t in theirs.trials], name
    with sqlite3.connect(database.removeprefix("sqlite:///")) as one:
        one.execute("ATTACH ? AS apart", (f"{database.removeprefix('sqlite:///')}-apart",))
        for query in (
            "SELECT * FROM main.trials EXCEPT SELECT * FROM apart.trials",
            "SELECT * FROM main.trial_params EXCEPT SELECT * FROM apart.trial_params",
            "SELECT * FROM main.trial_values EXCEPT SELECT * FROM apart.trial_values",
        ):
            assert not one.execute(query).fetchall(), query


INPUTS = {"data": "abc", "suite": "orchard"}


@pytest.mark.parametrize(
    ("fields", "inputs"),
    [
        ({"method": "ties"}, {}),
        ({"seed": 1}, {}),
        ({"search_seed": 1}, {}),
        ({"rank": 6}, {}),  # the largest basis size
        ({"published_params": (("eta", 0.15),)}, {}),
        ({"sampler": Sampler.RANDOM}, {}),
        ({"objectives": TWO}, {}),
        ({"objectives": TWO[::-1]}, {}),
        ({"rungs": Rungs(reduction=1)}, {}),
        ({"at_once": 7}, {}),
        ({}, {"data": "abd"}),
        ({}, {"suite": "another"}),
    ],
)
def test_what_determines_a_study_is_in_its_name(
    fields: dict[str, Any], inputs: dict[str, str]
) -> None:
    own = small_study()
    other = dataclasses.replace(own, **fields)
    assert other.key(INPUTS | inputs) != own.key(INPUTS)
    suite: Any = Orchard(Path())
    name = _storage_name(suite, own, own.key(INPUTS))
    assert name == f"orchard/doge_ta/seed0/{own.key(INPUTS)}"


def test_a_studys_name_does_not_depend_on_its_length() -> None:
    assert small_study(trials=3).key(INPUTS) == small_study(trials=300).key(INPUTS)


def test_the_declared_range_and_the_code_are_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_study("ties").key(INPUTS)
    params = dataclasses.make_dataclass(
        "Wider",
        [("coefficient", float, parameter(0.3, "λ", low=0, search=(0.0, 9.0)))],
        bases=(methods["ties"].params,),
        frozen=True,
        kw_only=True,
    )
    wider = dataclasses.replace(methods["ties"], params=params)
    monkeypatch.setattr(studies, "methods", {"ties": wider})
    assert small_study("ties").key(INPUTS) != own
    monkeypatch.undo()
    assert small_study("ties").key(INPUTS) == own
    monkeypatch.setattr(studies, "source_hash", lambda *_modules: "other code")
    assert small_study("ties").key(INPUTS) != own


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, but got 0"),
        ({"at_once": 0}, "at_once must be at least 1, but got 0"),
        ({"objectives": ()}, "objectives must be one or more different ones, but got none"),
        ({"objectives": TWO[:1] * 2}, "different ones, but got accuracy, accuracy"),
    ],
)
def test_bad_studies_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_study(**fields)


@pytest.mark.filterwarnings("ignore:`gamma` has been deprecated")
def test_arguments_of_the_sampler_are_pinned() -> None:
    """What another version of Optuna might choose otherwise is said."""
    seen = Seen({}, 1)
    sampler: Any = sampling._sampler(small_study(), 3, seen)
    assert sampler._n_startup_trials == 8
    assert sampler._n_ei_candidates == 24
    assert sampler._gamma(60) == seen.good
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, False, True)


def noisy(params: Mapping[str, Any], rung: int, noise: random.Random) -> float:
    """A score that grows from rung to rung and is best at one place."""
    distance = abs(np.log(params["eta"] / 0.3)) + abs(np.log(params["learning_rate"] / 3e-5))
    return float(0.6 - 0.02 * distance + 0.02 * rung + noise.gauss(0, 0.02 / 2**rung))


def mean_distance(sampler: Sampler, seed: int) -> float:
    """How far the later half of the suggestions are from the best place."""
    study = Study("doge_ta", seed, 40, 128, 8, sampler=sampler, at_once=4)
    found, noise = Sampling(study, "s"), random.Random(seed)
    late = []
    while (suggested := found.suggest()) is not None:
        number, params = suggested
        firsts: list[float] = []
        for rung in range(3):
            firsts.append(noisy(params, rung, noise))
            if not goes_on(found, number, firsts):
                break
        rungs = tuple((value,) for value in firsts)
        found.finish(number, Outcome(rungs=rungs, complete=len(rungs) == 3), {})
        if number >= 20:
            late.append(-noisy(params, 0, random.Random(0)))
    return sum(late) / len(late)


def test_tpe_learns_from_noisy_trials_of_which_many_are_stopped() -> None:
    tpe, at_random = (
        [mean_distance(sampler, seed) for seed in range(3)]
        for sampler in (Sampler.TPE, Sampler.RANDOM)
    )
    assert max(tpe) < min(at_random)


def test_a_stopped_trial_counts_as_what_it_would_have_come_to() -> None:
    study = small_study("task_arithmetic", trials=6, at_once=1, rungs=Rungs(reduction=3))
    found = Sampling(study, "s")
    for number, rungs in enumerate([(0.1, 0.2, 0.5), (0.2, 0.2, 0.4), (0.1, 0.3)]):
        suggested = found.suggest()
        assert suggested is not None
        values = tuple((value,) for value in rungs)
        found.finish(number, Outcome(rungs=values, complete=len(rungs) == 3), {})
    found.suggest()  # makes the three known to the sampler
    known = [found._seen._storage.get_trial(number).value for number in range(3)]
    found.write()
    assert known == pytest.approx([0.5, 0.4, 0.3 + (0.3 + 0.2) / 2])
    assert [trial.state.name for trial in found._kept.trials] == ["COMPLETE"] * 2 + ["PRUNED"]


@pytest.mark.parametrize("most", [30, 250])
def test_tpe_computes_with_what_optuna_would_read(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.search.sampling.Seen", partial(Seen, most=most))

    def suggested() -> list[Params]:
        sampling = Sampling(Study("doge_ta", 0, 60, 128, 8, at_once=3), "one", None)
        for number in range(sampling.study.trials):
            if number >= 2:  # so that some are under way
                finish(sampling, number - 2)
            assert sampling.suggest() is not None
        return [sampling.params(number) for number in range(sampling.study.trials)]

    def finish(sampling: Sampling, number: int) -> None:
        value = score(number, sampling.params(number), 2, 1)
        sampling.finish(number, Outcome(rungs=(value,) * 3, complete=True), {})

    fast = suggested()
    monkeypatch.delattr("tune.search.sampling._Tpe._get_internal_repr")
    assert suggested() == fast
