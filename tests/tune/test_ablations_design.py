"""What the ablations score: designs, their sizes, and that they are nested."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from apgd import InputError, merge
from apgd.suites import suites
from experiments import ablations
from tests.tune.made_up_bench import RANK, bench
from tune.ablations import components, order, parameter_curves, task_counts
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.scoring import studies
from tune.ablations.settings import ABLATIONS, CURVES, AblationSettings, spread
from tune.evaluators import Purpose
from tune.records import Variant

TASKS = tuple(task.name for task in suites["mini_vision"].tasks)


def test_sixteen_combinations_are_twelve_merges(tmp_path: Path) -> None:
    merges = components.merges(bench(tmp_path)[0])
    assert len(merges) == 16
    assert len(set(merges.values())) == 12
    for on, made in merges.items():
        twin = merges[(on[0], not on[1], *on[2:])]
        assert (made == twin) == (not on[0])
    assert merges[True, True, True, True].variant is Variant.PUBLISHED
    assert merges[False, False, False, False].settings["uniform_coefficient"] == 0.3


def test_nothing_on_is_task_arithmetic(model: Callable) -> None:
    base, experts = model()
    on = (False, False, False, False)
    ours = merge("doge_ta", base, experts, **components.changes(on, 0.3))
    theirs = merge("task_arithmetic", base, experts, coefficient=0.3)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_everything_on_is_the_method() -> None:
    assert components.changes((True, True, True, True), 0.3) == {}


def test_main_effects_are_over_pairs_that_differ_in_nothing_else() -> None:
    found = components.effect_pairs()
    assert [len(pairs) for pairs in found.values()] == [4, 8, 4, 8, 8]
    for pairs, taken in zip(found.values(), ({0, 1}, {0}, {1}, {2}, {3}), strict=True):
        for with_it, without in pairs:
            assert all(not without[i] for i in taken)
            assert all(with_it[i] == without[i] for i in set(range(4)) - taken)
            assert all(with_it[i] for i in taken)
    assert all(with_it[0] for with_it, _ in found["projection"])


def test_equal_merges_are_equal_whatever_has_no_effect(tmp_path: Path) -> None:
    at, _ = bench(tmp_path)

    def made(**changes: object):
        return at.merge(Purpose.SEARCH, changes)

    still = made(iterations=0)
    assert made(iterations=0, learning_rate=1e-2, basis_size=3, shared_basis_size=2) == still
    assert made(iterations=0, solver="exact", tolerance=0.5) == still
    assert made(uniform_coefficient=0.3, eta=0.5) == made(uniform_coefficient=0.3)
    assert made(tolerance=0.5) == made()
    assert made(solver="exact", tolerance=0.5) != made(solver="exact")
    assert made(basis_size=RANK // 8) == made()
    assert made().variant is Variant.PUBLISHED
    assert made(eta=0.1).variant is Variant.VARIED


def test_the_size_of_bases_follows_from_how_many_are_merged(tmp_path: Path) -> None:
    at, _ = bench(tmp_path)
    assert at.merge(Purpose.FINAL, tasks=TASKS[:3]).settings["basis_size"] == RANK // 3
    assert at.merge(Purpose.FINAL).tasks == TASKS
    assert at.merge(Purpose.SEARCH).tasks == ()


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_on_validation_data_and_hold_the_published_value(
    name: str, tmp_path: Path
) -> None:
    at, _ = bench(tmp_path, **{name: (0.4,) if name in ("eta", "keep_ratio") else (1,)})
    merges = parameter_curves.merges(at, name)
    assert list(merges) == sorted(merges)
    assert len(merges) == 2
    assert merges[parameter_curves.published_value(at, name)] == at.merge(Purpose.SEARCH)
    assert all(made.purpose is Purpose.SEARCH for made, _ in CATALOGUE[name].planned(at))


def test_sizes_above_the_rank_are_left_out(tmp_path: Path) -> None:
    at, _ = bench(tmp_path, basis_size=(1, RANK, RANK + 1))
    assert list(parameter_curves.merges(at, "basis_size")) == [1, 16, RANK]


def test_chains_are_nested_and_their_beginning_does_not_depend_on_their_number() -> None:
    for number in range(20):
        sets = task_counts.chain(TASKS, number)
        assert list(sets) == list(range(2, 8))
        for size, chosen in sets.items():
            assert len(set(chosen)) == size
            assert list(chosen) == sorted(chosen, key=TASKS.index)
            assert size == 2 or set(sets[size - 1]) < set(chosen)
        assert sets == task_counts.chain(TASKS, number)
    assert len({task_counts.chain(TASKS, number)[4] for number in range(20)}) > 10


def test_subsets_take_the_seeds_in_turn_and_none_twice(tmp_path: Path) -> None:
    few, _ = bench(tmp_path, chains=4)
    many, _ = bench(tmp_path, chains=60)
    for size, pairs in task_counts.subsets(many).items():
        assert len(set(pairs)) == len(pairs) <= 3 * math.comb(8, size)
        assert set(task_counts.subsets(few)[size]) <= set(pairs)
    assert [seed for _, seed in task_counts.subsets(few)[4]] == [0, 1, 2, 0]


def test_orders_are_other_orders() -> None:
    found = order.orders(TASKS, 5)
    assert len(set(found)) == 5
    assert TASKS not in found
    assert all(sorted(each) == sorted(TASKS) for each in found)
    assert order.orders(TASKS, 3) == found[:3]
    assert order.orders(("a", "b"), 4) == [("b", "a")]


def test_searches_of_a_column_differ_in_the_seed_of_the_experts_alone() -> None:
    settings = AblationSettings(seeds=2, search_seeds=3)
    suite = suites["mini_vision"]
    made = studies(settings, suite, [(0, 0), (1, 0), (0, 2)])
    assert [(study.seed, study.suggesting_seed) for study in made] == [(0, 0), (1, 0), (0, 2)]
    assert {study.trials for study in made} == {12}
    assert len({study.key({}) for study in made}) == 3
    assert replace(made[1], seed=0) == made[0]


def test_fewer_values_are_among_more_and_far_apart() -> None:
    values = (7, 1, 5, 3, 2, 6, 4)
    chosen = [spread(values, count, 3) for count in range(1, 9)]
    assert chosen[0] == [3]
    assert chosen[1] == [3, 7]
    assert chosen[-1] == chosen[-2] == [1, 2, 3, 4, 5, 6, 7]
    for fewer, more in pairwise(chosen):
        assert set(fewer) <= set(more)


def test_a_budget_cuts_down_and_belongs_to_the_same_run() -> None:
    whole, quarter = AblationSettings(), AblationSettings(budget=0.25)
    assert whole.cut().seeds == 3
    assert whole.cut().eta == whole.eta
    assert quarter.folder == whole.folder
    cut = quarter.cut()
    assert (cut.seeds, cut.chains, cut.orders, cut.search_seeds) == (1, 3, 1, 2)
    assert 0.07 in cut.eta
    assert len(cut.eta) == 2
    for name in CURVES:
        assert set(getattr(cut, name)) <= set(getattr(whole, name))
    assert AblationSettings(smoke=True).cut().seeds == 2
    assert AblationSettings(smoke=True).folder != whole.folder


def test_the_plan_of_the_defaults(tmp_path: Path) -> None:
    """What README says of the time rests on these counts."""
    at, _ = bench(tmp_path)
    jobs = {
        name: {made.job(seed) for made, seed in CATALOGUE[name].planned(at)} for name in ABLATIONS
    }
    counts = {name: len(found) for name, found in jobs.items()}
    assert counts["components"] == 12 * 3
    assert counts["eta"] == 7 * 3
    assert counts["solver"] == (7 * 2 + 2) * 3
    assert counts["tasks"] <= 3 + 4 * 3 + 6 * 9 * 4
    assert counts["order"] == 4 * (4 + 3)
    assert len(set().union(*jobs.values())) < 480


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "eta", "etta"], "unknown ablation 'etta'; known are: components, eta"),
        (["--only", "eta", "eta"], "only must name ablations, each once, but got eta, eta"),
        (["--budget", "0"], "budget must lie in (0, 1], but got 0"),
        (["--budget", "1.5"], "budget must lie in (0, 1], but got 1.5"),
        (["--chains", "1"], "chains must be at least 2, but got 1"),
        (["--eta", "0.07", "-1"], "eta must lie in (0, ∞), but got -1"),
        (["--keep-ratio", "30"], "keep_ratio must lie in (0, 1], but got 30"),
        (["--methods", "tias"], "unknown method 'tias'"),
    ],
)
def test_bad_choices_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_help_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ablations.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in ("only", "budget", "seeds", "smoke", "eta", "basis-size", "chains", "run-dir"):
        assert f"--{name}" in text
    assert "--compare" not in text


def test_unknown_choices_are_input_errors() -> None:
    with pytest.raises(InputError, match="search_seeds must be at least 2, but got 1"):
        AblationSettings(search_seeds=1)
