"""What the benchmark of the search counts, and that its naive loop merges the same."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from apgd import merge
from apgd.methods import methods
from experiments import timed_search
from experiments.benchmark_search import efficiency, targets
from experiments.naive_search import merge_plainly, search_space
from experiments.search_rates import (
    Counts,
    CpuMeter,
    rung_counts,
    steady_rate,
    time_split,
    within,
)
from experiments.timed_search import TimedSampling
from tune.search.rungs import Judged, RungResult, Rungs, Setting
from tune.search.sampling import Outcome
from tune.search.studies import Study

State = dict[str, Tensor]


def rung(share: float, settings: list[Setting], best: int = 0, seconds: float = 0.5) -> RungResult:
    judged = tuple(Judged(setting=s, values=(0.1 * i,)) for i, s in enumerate(settings))
    return RungResult(
        share=share, judged=judged, best=best, scores={},
        seconds={"merge": seconds, "score": 2 * seconds}, reads={},
    )  # fmt: skip


A, B, C = ({"iterations": n, "keep_ratio": k} for n, k in ((5, 0.1), (5, 0.3), (9, 0.1)))


def examples_at(share: float) -> int:
    return round(90 * share)


def test_a_setting_counts_once_and_its_images_each_time() -> None:
    found = rung_counts([rung(1 / 9, [A, B]), rung(1 / 3, [A, C]), rung(1, [C])], examples_at)
    assert [of.settings for of in found] == [2, 1, 0]
    assert [of.in_full for of in found] == [0, 0, 1]
    assert [of.images for of in found] == [20, 60, 90]
    together = within([(2.0 * i, of) for i, of in enumerate(found)], -2, 4)
    assert together.trials == pytest.approx(1)
    assert (together.merge, together.score) == (1.5, 3.0)


def test_a_known_score_is_not_an_image_again() -> None:
    found = rung_counts([rung(1, [A, B]), rung(1, [B, C])], examples_at)
    assert [of.settings for of in found] == [2, 1]
    assert [of.in_full for of in found] == [2, 1]
    assert [of.images for of in found] == [180, 90]


def test_work_counts_as_far_as_it_lies_in_the_steady_part() -> None:
    # Four pieces of 2 s, one after the other from 0 to 8.
    events = [(2.0 * i + 2, Counts(settings=10**i, merge=0.5, score=1.5)) for i in range(4)]
    assert within(events, 0, 8) == Counts(settings=1111, merge=2, score=6)
    assert within(events, 2, 6).settings == pytest.approx(110)
    cut = within(events, 1, 6.5)
    assert cut.settings == pytest.approx(0.5 + 110 + 250)
    assert cut.merge + cut.score == pytest.approx(5.5)
    assert within(events, 8, 9) == Counts()


def test_the_steady_rate_leaves_out_both_ends() -> None:
    # Each slot's first trial takes 10 s, each other one 4 s.
    assert steady_rate([10, 10, 14, 14, 18, 18], 2) == pytest.approx(2 / 4)
    assert steady_rate([5, 10, 20, 30], 1) == pytest.approx(3 / 25)
    # Slots 0 and 1: 0-3, 3-11, 11-13, and 0-5, 5-9, 9-17, then nothing is left for slot 0.
    assert steady_rate([3, 5, 11, 9, 17, 13], 2) == pytest.approx(2 * 4 / (8 + 4 + 8 + 2))
    with pytest.raises(ValueError, match="at least two trials a slot, but got 3 for 2"):
        steady_rate([1, 2, 3], 2)


def test_shares_of_time_add_up() -> None:
    counts = Counts(trials=2, settings=8, merge=3.0, score=11.0)
    split = time_split(wall=10.0, workers=2, counts=counts)
    assert (split.merge, split.score, split.other) == pytest.approx((0.15, 0.55, 0.3))
    assert split.per_trial == pytest.approx(3.0)
    assert split.per_setting == pytest.approx(0.75)
    with pytest.raises(ValueError, match="at least one setting, but got 0"):
        time_split(1.0, 1, Counts())


def search(label: str, workers: int, settings: float, overhead: float = 0.04) -> dict[str, Any]:
    return {
        "label": label, "workers": workers,
        "per_hour": {"settings": settings, "settings_in_full": settings / 4},
        "time": {"merge": 0.2, "score": 0.5, "per_trial": overhead},
    }  # fmt: skip


def test_targets_are_held_against_what_was_measured() -> None:
    assert efficiency(search("", 2, 100), search("", 8, 340)) == pytest.approx(0.85)
    report = {
        "naive": {"plain": {"per_hour": 10.0}},
        "searches": [
            search("as used", 2, 240), search("like for like", 2, 190, overhead=0.06),
            search("1 worker", 1, 150),
        ],
    }  # fmt: skip
    found = [(goal["value"], goal["met"]) for goal in targets(report)]
    assert found == [
        (24, True), (19, False), (6, False),
        (0.7, True), (0.04, True), (0.7, True), (0.06, False),
        (0.8, False),
    ]  # fmt: skip


def test_the_plain_merge_is_doge_ta(model: Callable[..., tuple[State, dict[str, State]]]) -> None:
    base, experts = model()
    params = {"eta": 0.2, "iterations": 30, "learning_rate": 1e-3, "keep_ratio": 0.4}

    def select(_name: str, tensor: Tensor) -> bool:
        return tensor.ndim == 2

    for more in ({}, {"basis_size": 1}):
        ours = merge("doge_ta", base, experts, select=select, **params, **more)
        plain = merge_plainly(base, experts, select, **params, **more)
        assert set(plain) == set(ours)
        for name, tensor in ours.items():
            torch.testing.assert_close(plain[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_naive_space_is_the_declared_one() -> None:
    space = search_space(128)
    searched = {p.name for p in methods["doge_ta"].params.declared() if p.search is not None}
    assert set(space) == searched
    drawn = [space["basis_size"].sample() for _ in range(200)]
    assert min(drawn) >= 1
    assert max(drawn) <= 128
    assert all(isinstance(of, int) for of in drawn)


class Clock:
    """Time that goes by only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    def ended(self, *ago: float) -> Outcome:
        """A trial whose rungs were done so many seconds ago."""
        times = tuple(self.time() - seconds for seconds in ago)
        return Outcome(rungs=((0.5,),) * len(ago), complete=False, times=times)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timed_search, "time", clock)
    return clock


def test_a_search_ends_once_its_time_is_up(clock: Clock) -> None:
    study = Study("doge_ta", 0, 100, 128, 8, rungs=Rungs(reduction=1))
    sampling = TimedSampling(study, "timed", None, warm_up=1, seconds=20)
    for number in range(2):
        assert sampling.suggest() is not None
        clock.now += 1
        sampling.finish(number, clock.ended(0), {})
    assert sampling.suggest() is not None
    clock.now += 25
    assert sampling.suggest() is None
    assert sampling.suggested >= sampling.study.trials  # so that the search ends
    sampling.finish(2, clock.ended(22, 0), {})
    begin, end = sampling.begin, sampling.end
    assert [place for at, *place in sampling.reported if begin < at <= end] == [[1, 0], [2, 0]]
    assert (sampling.reported[-1][1:], sampling.reported[-1][0] > end) == ((2, 1), True)


def test_a_search_of_so_many_trials_is_measured_while_every_worker_has_one(clock: Clock) -> None:
    sampling = TimedSampling(Study("doge_ta", 0, 3, 128, 8), "counted", None, 1, None)
    for number in range(3):
        sampling.suggest()
        clock.now += 2
        sampling.finish(number, clock.ended(1, 0), {})
    assert [place[1:] for place in sampling.reported] == [(n, r) for n in range(3) for r in (0, 1)]
    assert sampling.begin == sampling.reported[0][0]
    assert sampling.end == sampling.reported[3][0]  # then one trial was left for one worker


def test_processor_time_goes_to_the_driver() -> None:
    with CpuMeter({"trials": ("no such title",)}) as meter:
        begin, until = time.perf_counter(), time.process_time() + 0.3
        while time.process_time() < until:
            sum(range(10_000))
    spent = meter.between(begin - 1, time.perf_counter())
    assert spent["driver"] > 0.1
    assert spent["trials"] == 0
    assert meter.started("trials", begin - 1, time.perf_counter()) == 0
