"""What samplers see of long studies."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from tests.tune.small_search import small_study
from tune.search import sampling
from tune.search.sampling import Outcome, Sampling
from tune.search.seen import MOST, Seen
from tune.search.studies import Study

LINE = {"x": FloatDistribution(0.0, 1.0)}


def told(values: Sequence[Sequence[float] | None], most: int) -> Seen:
    objectives = max(len(value) for value in values if value is not None)
    seen = Seen(LINE, objectives, most)
    for number, value in enumerate(values):
        seen.begin({"x": 0.5})
        seen.tell(number, value)
    return seen


def test_short_studies_are_seen_whole() -> None:
    assert told([[1.0], None, [3.0], [2.0]], most=3).shown == [0, 2, 3]


def test_the_best_and_an_even_part_of_long_ones_are_seen() -> None:
    values = [float(number % 101) for number in range(1000)]
    shown = told([[value] for value in values], most=50).shown
    best = sorted(range(1000), key=lambda number: (-values[number], number))[:25]
    assert set(best) <= set(shown)
    assert len(shown) <= 50
    others = sorted(set(shown) - set(best))
    assert max(b - a for a, b in pairwise(others)) <= 2 * 1000 / 24
    assert {0, 999} <= set(shown)


def test_of_several_objectives_the_front_is_seen() -> None:
    draw = random.Random(1)
    values = [[draw.random() ** 2, draw.random() ** 2] for _ in range(300)]
    front = {
        i for i, own in enumerate(values)
        if not any(all(a >= b for a, b in zip(o, own, strict=True)) for o in values if o is not own)
    }  # fmt: skip
    shown = told(values, most=60).shown
    assert 3 <= len(front) <= 25
    assert front <= set(shown)
    assert len(shown) <= 60
    slope = [[float(i), float(-i)] for i in range(300)]  # a front of everything
    assert len(told(slope, most=60).shown) <= 60


def test_as_many_are_good_as_if_all_were_seen() -> None:
    goods = [told([[float(i)] for i in range(count)], most=50).good for count in (1, 200, 900)]
    assert goods == [1, 20, 25]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_whole_numbers_are_drawn_over_their_range(sampler: str, log: bool) -> None:
    space = {"k": IntDistribution(1, 4, log=log), "one": IntDistribution(7, 7)}
    seen, counts = Seen(space, 1), Counter[int]()
    for seed in range(300):
        kind = optuna.samplers.RandomSampler if sampler == "random" else optuna.samplers.TPESampler
        params = seen.suggest(kind(seed=seed))
        assert params["one"] == 7
        assert isinstance(params["k"], int)
        counts[params["k"]] += 1
        if sampler == "tpe":
            seen.tell(seed, [-abs(params["k"] - 4)])
    assert set(counts) <= {1, 2, 3, 4}
    assert {1, 4} <= set(counts)
    if sampler == "random" and log:
        assert counts[1] > counts[2] > counts[4]
    elif sampler == "random":
        assert min(counts.values()) > 50


def test_samplers_read_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    original = optuna.samplers.TPESampler.sample_relative

    def counted(self: Any, study: optuna.Study, trial: Any, space: Any) -> Any:
        counts.append(len(study.get_trials(deepcopy=False)))
        return original(self, study, trial, space)

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", counted)
    monkeypatch.setattr(sampling, "Seen", lambda space, count: Seen(space, count, 40))
    found = Sampling(small_study(trials=120), "s")
    while (suggested := found.suggest()) is not None:
        number, _ = suggested
        found.finish(number, Outcome(rungs=((0.1 * number % 1,),) * 3, complete=True), {})
    assert max(counts) <= 40 + small_study().at_once + 1
    assert max(counts) >= 40


def regret(most: int, seed: int) -> float:
    """How far the best hundred of 400 suggestions are from the best place, on average."""
    study = Study("doge_ta", seed, 400, 128, 8, at_once=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "Seen", lambda space, count: Seen(space, count, most))
        found, noise = Sampling(study, "s"), random.Random(seed)
        distances = []
        while (suggested := found.suggest()) is not None:
            number, params = suggested
            distance = abs(math.log(params["eta"] / 0.3)) + abs(params["basis_size"] - 90) / 128
            distance += abs(math.log(params["learning_rate"] / 3e-5))
            value = (-distance + noise.gauss(0, 0.05),)
            found.finish(number, Outcome(rungs=(value,) * 3, complete=True), {})
            distances.append(distance)
    return sum(sorted(distances)[:100]) / 100


@pytest.mark.slow
def test_a_part_suggests_as_well_as_the_whole() -> None:
    part, whole = ([regret(most, seed) for seed in range(4)] for most in (MOST, 10**6))
    spread = max(whole) - min(whole)
    assert sum(part) / 4 <= sum(whole) / 4 + spread
