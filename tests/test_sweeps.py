"""One run scores many settings: each is what a merge with that setting alone gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from apgd.methods import Value, methods
from apgd.projective import task_bases
from apgd.shared_work import SharedWork
from apgd.sweep import Trajectory
from apgd.task_vectors import Delta, TaskVectors
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]
RATE = 3e-3  # so large that Δ counts
PLUGGED = ("weight_averaging+apgd", "task_arithmetic+apgd", "ties+apgd", "tsv_m+apgd")


@pytest.fixture
def vectors(model: Make) -> TaskVectors:
    return TaskVectors(*model(), lambda name, tensor: tensor.ndim == 2 and name != "row")


def same_size(vectors: TaskVectors, k: int) -> SharedWork:
    """Shared work whose bases are of the very size that a merge takes: the same bits."""
    return SharedWork(vectors, {name: task_bases(vectors[name], k) for name in vectors.names})


def begun(method: str, shared: SharedWork, params: dict[str, Value]) -> Trajectory:
    parsed = methods[method].parse(params)
    sweep = methods[method].sweep(parsed)
    assert sweep is not None
    return sweep.begin(shared, parsed)


def alone(method: str, vectors: TaskVectors, params: dict[str, Value]) -> Delta:
    return methods[method].merge(vectors, methods[method].parse(params))


def assert_same_bits(found: Delta, expected: Delta) -> None:
    assert set(found) == set(expected)
    for name, change in expected.items():
        assert torch.equal(found[name], change), name


def assert_close(found: Delta, expected: Delta) -> None:
    assert set(found) == set(expected)
    for name, change in expected.items():
        torch.testing.assert_close(
            found[name], change, atol=2e-5 * float(change.abs().max()), rtol=0
        )


OWN: dict[str, Value] = {"basis_size": 2, "learning_rate": RATE}


def test_a_snapshot_is_the_merge_with_as_many_steps(vectors: TaskVectors) -> None:
    run = begun("doge_ta", same_size(vectors, 2), {**OWN, "iterations": 400})
    found = {
        (steps, ratio): run.delta(steps, {"keep_ratio": ratio})
        for steps in (0, 1, 100, 400)
        for ratio in (0.1, 0.3, 1.0)
    }
    for (steps, ratio), delta in found.items():
        params = {**OWN, "iterations": steps, "keep_ratio": ratio}
        assert_same_bits(delta, alone("doge_ta", vectors, params))
    # What was asked for stays, also in another order.
    assert_same_bits(run.delta(100, {"keep_ratio": 0.3}), found[100, 0.3])
    # And Δ does something.
    assert not torch.equal(found[0, 1.0]["square"], found[400, 1.0]["square"])


def test_bases_that_others_share_change_no_more_than_rounding(vectors: TaskVectors) -> None:
    for shared in (SharedWork(vectors), same_size(vectors, 4)):
        run = begun("doge_ta", shared, OWN)
        for steps in (10, 50):
            params = {**OWN, "iterations": steps, "keep_ratio": 0.5}
            assert_close(run.delta(steps, {"keep_ratio": 0.5}), alone("doge_ta", vectors, params))


@pytest.mark.parametrize(
    "params",
    [
        {"eta": 0.5},
        {"uniform_coefficient": 0.3},
        {"basis_size": 0},
        {"basis_size": 3, "shared_basis_size": 1},
        {"basis_size": 5},
    ],
)
def test_every_parameter_counts_in_a_run(vectors: TaskVectors, params: dict[str, Value]) -> None:
    whole: dict[str, Value] = {**OWN, **params}
    k = whole["basis_size"]
    assert isinstance(k, int)
    run = begun("doge_ta", same_size(vectors, k), whole)
    delta = run.delta(20, {"keep_ratio": 0.3})
    assert_same_bits(delta, alone("doge_ta", vectors, {**whole, "iterations": 20}))


def test_two_runs_share_without_disturbing_each_other(vectors: TaskVectors) -> None:
    shared = same_size(vectors, 2)
    first = begun("doge_ta", shared, {**OWN, "eta": 0.07})
    second = begun("doge_ta", shared, {**OWN, "eta": 0.7})
    ratio = {"keep_ratio": 0.3}
    for steps in (5, 10):
        for run, eta in ((first, 0.07), (second, 0.7)):
            params = {**OWN, "eta": eta, "iterations": steps}
            assert_same_bits(run.delta(steps, ratio), alone("doge_ta", vectors, params))


@pytest.mark.parametrize("method", PLUGGED)
def test_the_same_holds_where_apgd_comes_before_a_method(method: str, vectors: TaskVectors) -> None:
    params: dict[str, Value] = {f"apgd_{name}": value for name, value in OWN.items()}
    run = begun(method, same_size(vectors, 2), params)
    for steps in (0, 10, 100):
        expected = alone(method, vectors, {**params, "apgd_iterations": steps})
        assert_same_bits(run.delta(steps, {}), expected)
    assert_same_bits(run.delta(10, {}), alone(method, vectors, {**params, "apgd_iterations": 10}))


def test_the_exact_solver_has_one_delta_for_all_keep_ratios(
    vectors: TaskVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact: dict[str, Value] = {"basis_size": 2, "solver": "exact", "tolerance": 1e-6}
    sweep = methods["doge_ta"].sweep(methods["doge_ta"].parse(exact))
    assert sweep is not None
    assert (sweep.growing, sweep.late) == (None, ("keep_ratio",))
    run = begun("doge_ta", same_size(vectors, 2), exact)
    assert run.reaches(None)
    assert not run.reaches(400)
    expected = {
        ratio: alone("doge_ta", vectors, {**exact, "keep_ratio": ratio}) for ratio in (0.1, 1.0)
    }
    monkeypatch.setattr("apgd.fused.exact_modification_vector", None)  # found already
    for ratio, delta in expected.items():
        assert_same_bits(run.delta(None, {"keep_ratio": ratio}), delta)
    with pytest.raises(ValueError, match="400 were asked for"):
        run.delta(400, {"keep_ratio": 0.3})


@pytest.mark.parametrize("method", ["doge_ta", "ties+apgd"])
def test_steps_that_were_passed_cannot_be_had(method: str, vectors: TaskVectors) -> None:
    prefix = "" if method == "doge_ta" else "apgd_"
    late: dict[str, Any] = {} if prefix else {"keep_ratio": 0.3}
    run = begun(method, SharedWork(vectors), {f"{prefix}basis_size": 2})
    assert run.reaches(0)
    assert run.reaches(7)
    run.delta(7, late)
    run.delta(20, late)
    assert [run.reaches(steps) for steps in (0, 6, 7, 8, 19, 20, 21)] == [
        False, False, True, False, False, True, True,
    ]  # fmt: skip
    assert not run.reaches(None)
    for steps in (0, 6, 8, 19):
        with pytest.raises(ValueError, match=f"must grow from 20, but {steps} were asked for"):
            run.delta(steps, late)
    run.delta(7, late)


def test_only_methods_whose_result_needs_nothing_else_have_a_sweep() -> None:
    def sweep_of(method: str, **params: Value) -> Any:
        return methods[method].sweep(methods[method].parse(params))

    swept = sweep_of("doge_ta")
    assert (swept.growing, swept.late, swept.bases) == ("iterations", ("keep_ratio",), "basis_size")
    swept = sweep_of("ties+apgd")
    assert (swept.growing, swept.late) == ("apgd_iterations", ())
    assert swept.bases == "apgd_basis_size"
    assert sweep_of("ties+apgd", apgd_solver="exact") is None
    assert sweep_of("regmean+apgd") is None  # needs statistics
    for method in ("ties", "weight_averaging", "doge_am", "adamerging_task_wise"):
        assert sweep_of(method) is None
