"""Which settings a trial judges rung by rung, and which trials are stopped, by hand."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from apgd import InputError
from apgd.methods import Value, methods
from tune.search.rungs import Judged, RungResult, Rungs, Setting, bar, settings_at

DOGE = methods["doge_ta"]
OWN = DOGE.parse({"basis_size": 4}).as_dict()  # 400 iterations, keep ratio 0.3
GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def of(iterations: int, *keep_ratios: float) -> list[Setting]:
    return [{"iterations": iterations, "keep_ratio": ratio} for ratio in keep_ratios]


def result(settings: Sequence[Setting], values: Sequence[float], share: float = 0.5) -> RungResult:
    judged = tuple(
        Judged(setting=setting, values=(value,))
        for setting, value in zip(settings, values, strict=True)
    )
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    return RungResult(
        share=share, judged=judged, best=best,
        scores={"validation/a": max(values)}, seconds={"merge": 1.5}, reads={"validation": 3},
    )  # fmt: skip


def at(
    earlier: Sequence[RungResult],
    params: dict[str, Value] = OWN,
    rungs: Rungs | None = None,
    *,
    keep_own: bool = False,
    method: str = "doge_ta",
) -> list[Setting]:
    return settings_at(rungs or Rungs(), methods[method], params, earlier, keep_own=keep_own)


def test_the_first_rung_judges_every_keep_ratio_after_an_eighth_of_the_steps() -> None:
    assert at([]) == of(50, *GRID)


def test_a_published_value_joins_the_grid_in_its_place() -> None:
    assert at([], {**OWN, "keep_ratio": 0.42}) == of(50, 0.05, 0.1, 0.2, 0.3, 0.42, 0.5, 0.75, 1.0)


def test_a_quarter_goes_on_and_the_best_so_far_with_it() -> None:
    first = result(at([]), [0.1, 0.2, 0.3, 0.7, 0.6, 0.5, 0.4])
    assert at([first]) == [*of(50, 0.3), *of(200, 0.3, 0.5)]  # ⌈7 / 4⌉ = 2 of them
    second = result(at([first]), [0.7, 0.75, 0.8])
    assert at([first, second]) == [*of(200, 0.5), *of(400, 0.5)]  # ⌈3 / 4⌉ = 1


def test_the_best_so_far_may_be_one_of_fewer_steps() -> None:
    first = result(at([]), [0.1, 0.2, 0.3, 0.7, 0.6, 0.5, 0.4])
    second = result(at([first]), [0.9, 0.75, 0.8])
    assert at([first, second]) == [*of(50, 0.3), *of(400, 0.3)]
    third = result(at([first, second]), [0.9, 0.8])
    assert third.setting == {"iterations": 50, "keep_ratio": 0.3}
    assert third.values == (0.9,)


def test_of_equals_those_that_come_first_go_on() -> None:
    first = result(at([]), [0.5] * 7)
    assert at([first]) == [*of(50, 0.05), *of(200, 0.05, 0.1)]


def test_the_published_settings_stay_in_the_first_trial() -> None:
    first = result(at([], keep_own=True), [0.7, 0.6, 0.5, 0.1, 0.2, 0.3, 0.4])
    second = at([first], keep_own=True)
    assert second == [*of(50, 0.05), *of(200, 0.05, 0.1, 0.3)]
    third = at([first, result(second, [0.1, 0.9, 0.3, 0.2])], keep_own=True)
    assert third == [*of(200, 0.05), *of(400, 0.05, 0.3)]
    assert third[-1] == {name: OWN[name] for name in ("iterations", "keep_ratio")}
    ahead = result(at([], keep_own=True), [0, 0, 0, 1.0, 0, 0, 0])
    assert at([ahead], keep_own=True) == [*of(50, 0.3), *of(200, 0.3, 0.05)]  # once, not twice


def test_nothing_is_dropped_with_a_narrowing_of_one() -> None:
    first = result(at([]), [0.1, 0.2, 0.3, 0.7, 0.6, 0.5, 0.4])
    wide = at([first], rungs=Rungs(narrowing=1))
    assert wide == [*of(50, 0.3), *of(200, 0.3, 0.5, 0.75, 1.0, 0.2, 0.1, 0.05)]


@pytest.mark.parametrize(
    ("iterations", "amounts"),
    [(400, [50, 200, 400]), (12, [2, 6, 12]), (3, [1, 2, 3]), (1, [1] * 3)],
)
def test_amounts_grow_up_to_the_published_one(iterations: int, amounts: list[int]) -> None:
    # The declared range begins at 0, but a rung without a step would not be the method.
    results: list[RungResult] = []
    for amount in amounts:
        settings = at(results, {**OWN, "iterations": iterations})
        assert settings[-1]["iterations"] == amount
        results.append(result(settings, [0.5] * len(settings)))


def test_no_steps_stay_none() -> None:
    without = {**OWN, "iterations": 0}
    first = at([], without)
    assert first == of(0, *GRID)
    # A setting is not judged twice at a rung.
    assert at([result(first, [0.5] * 7)], without) == of(0, 0.05, 0.1)


def test_the_exact_solver_has_keep_ratios_alone() -> None:
    exact = {**OWN, "solver": "exact"}
    first = at([], exact)
    assert first == [{"keep_ratio": ratio} for ratio in GRID]
    second = at([result(first, [0.1, 0.2, 0.3, 0.7, 0.6, 0.5, 0.4])], exact)
    assert second == [{"keep_ratio": 0.3}, {"keep_ratio": 0.5}]


def test_a_method_before_which_apgd_comes_grows_alone() -> None:
    own = methods["ties+apgd"].parse({"apgd_basis_size": 4}).as_dict()
    first = at([], own, method="ties+apgd")
    assert first == [{"apgd_iterations": 50}]
    second = at([result(first, [0.5])], own, method="ties+apgd", keep_own=True)
    assert second == [{"apgd_iterations": 50}, {"apgd_iterations": 200}]


def test_a_method_without_a_sweep_has_one_setting_at_every_rung() -> None:
    own = methods["ties"].parse({}).as_dict()
    first = at([], own, method="ties")
    assert first == [{}]
    assert at([result(first, [0.5])], own, method="ties") == [{}]


def test_what_grows_must_be_counted() -> None:
    grown: Any = dataclasses.replace(DOGE, sweep=lambda _params: DOGE.sweep(DOGE.parse({})))
    with pytest.raises(InputError, match=r"iterations must be an integer, but got 2\.5"):
        settings_at(
            Rungs(),
            dataclasses.replace(grown, params=_NoCheck),
            {**OWN, "iterations": 2.5},
            [],
            keep_own=False,
        )


class _NoCheck(DOGE.params):  # type: ignore[name-defined,misc]
    def __post_init__(self) -> None:
        pass


def test_a_rung_comes_back_from_json() -> None:
    before = result(at([]), [0.1, 0.2, 0.3, 0.7, 0.6, 0.5, 0.4])
    assert RungResult.from_json(json.loads(json.dumps(asdict(before)))) == before
    assert before.values == (0.7,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": ()}, "shares must grow within"),
        ({"shares": (0.5, 0.2, 1.0)}, "shares must grow within"),
        ({"shares": (0.1, 0.5, 0.9)}, r"shares must grow within \(0, 1\] up to 1"),
        ({"growth": (0.0, 0.5, 1.0)}, "growth must grow within"),
        ({"shares": (0.5, 1.0)}, "shares and growth must be as many, but got 2 and 3"),
        ({"narrowing": 0}, "narrowing must be at least 1, but got 0"),
        ({"reduction": 0}, "reduction must be at least 1, but got 0"),
    ],
)
def test_bad_plans_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rungs(**fields)


@pytest.mark.parametrize(
    ("value", "others", "reduction", "expected"),
    [
        (0.0, [], 3, True),
        (0.0, [0.9, 0.8], 3, True),  # fewer than three are no measure
        (0.5, [0.9, 0.8, 0.7], 3, False),  # the best third of three is one
        (0.9, [0.9, 0.8, 0.7], 3, True),
        (0.89, [0.9, 0.8, 0.7, 0.6, 0.5], 3, False),  # ⌊5 / 3⌋ = 1
        (0.8, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 3, True),  # ⌊6 / 3⌋ = 2
        (0.79, [0.4, 0.9, 0.5, 0.8, 0.6, 0.7], 3, False),
        (0.6, [0.1, 0.9], 2, False),
        (0.0, [1.0] * 20, 1, True),
    ],
)
def test_halving_by_hand(value: float, others: list[float], reduction: int, expected: bool) -> None:
    assert (value >= bar(sorted(others), reduction)) is expected


def test_of_several_objectives_those_go_on_that_none_dominates() -> None:
    settings = of(50, 0.1, 0.2, 0.3, 0.5)
    values = [(0.5, 0.2), (0.6, 0.1), (0.4, 0.4), (0.4, 0.1)]
    judged = tuple(Judged(setting=s, values=v) for s, v in zip(settings, values, strict=True))
    before = RungResult(share=0.5, judged=judged, best=1, scores={}, seconds={}, reads={})
    found = settings_at(Rungs(), DOGE, OWN, [before], keep_own=False)
    assert found == [*of(50, 0.2), *of(200, 0.2, 0.1, 0.3)]
