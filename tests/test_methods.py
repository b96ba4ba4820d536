"""Closed forms of methods, their registry, and APGD before another method."""

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import InputError, merge
from apgd.methods import Method, MethodParams, methods
from apgd.methods._apgd import ApgdParams, modification
from apgd.methods.doge_ta import DogeTaParams
from apgd.registry import Registry
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]


def test_unknown_method_lists_the_known_ones(model: Make) -> None:
    with pytest.raises(InputError, match="'doge'; known are: .*doge_ta, .*task_arithmetic, .*ties"):
        merge("doge", *model())


def test_registries_can_be_asked_without_being_refused() -> None:
    assert methods.get("ties") is methods["ties"]
    assert methods.get("doge") is None
    assert "doge" not in methods


def test_average_is_the_mean_of_the_experts(model: Make) -> None:
    base, experts = model(4)
    merged = merge("weight_averaging", base, experts)
    mean = torch.stack([state["wide"] for state in experts.values()]).mean(dim=0)
    torch.testing.assert_close(merged["wide"], mean)


def test_task_arithmetic_adds_scaled_task_vectors(model: Make) -> None:
    base, experts = model(2)
    merged = merge("task_arithmetic", base, experts, coefficient=0.25)
    total = sum(state["row"] - base["row"] for state in experts.values())
    torch.testing.assert_close(merged["row"], base["row"] + 0.25 * total)
    alone = merge("task_arithmetic", base, {"a": experts["expert0"]}, coefficient=1.0)
    torch.testing.assert_close(alone["row"], experts["expert0"]["row"])


def test_ties_by_hand() -> None:
    base = {"w": torch.zeros(1, 5)}
    experts = {
        "a": {"w": torch.tensor([[4.0, -3.0, 0.1, 2.0, 1.0]])},
        "b": {"w": torch.tensor([[-1.0, -5.0, 0.2, -2.0, 0.0]])},
        "c": {"w": torch.tensor([[2.0, 1.0, -6.0, 0.3, 0.0]])},
    }
    merged = merge("ties", base, experts, coefficient=1.0, keep_ratio=1.0, aggregate="mean")["w"]
    # Elected signs: +, −, −, + (0.3 tips it), +; then the mean of the entries that agree.
    torch.testing.assert_close(merged, torch.tensor([[3.0, -4.0, -6.0, (2.0 + 0.3) / 2, 1.0]]))
    trimmed = merge("ties", base, experts, coefficient=0.5, keep_ratio=0.2, aggregate="mean")["w"]
    # The two largest of five entries each: a {4, −3}, b {−5, ±2}, c {−6, 2}.
    torch.testing.assert_close(trimmed, 0.5 * torch.tensor([[3.0, -4.0, -6.0, -2.0, 0.0]]))
    summed = merge("ties", base, experts, coefficient=0.5, keep_ratio=0.2, aggregate="sum")["w"]
    torch.testing.assert_close(summed, 0.5 * torch.tensor([[6.0, -8.0, -6.0, -2.0, 0.0]]))


def test_ties_breaks_exact_ties_by_the_majority() -> None:
    base = {"w": torch.zeros(1, 4)}
    experts = {
        "a": {"w": torch.tensor([[1.0, -2.0, -3.0, -4.0]])},
        "b": {"w": torch.tensor([[-1.0, -2.0, -3.0, -4.0]])},
    }
    merged = merge("ties", base, experts, coefficient=1.0, keep_ratio=1.0, aggregate="mean")["w"]
    torch.testing.assert_close(merged, torch.tensor([[-1.0, -2.0, -3.0, -4.0]]))


def test_doge_without_reach_is_task_aware_task_arithmetic(model: Make) -> None:
    base, experts = model(3)
    merged = merge("doge_ta", base, experts, eta=0.2, keep_ratio=1.0, learning_rate=1e-30)
    for name in ("tall", "wide", "square", "row"):
        tau = torch.stack([state[name] - base[name] for state in experts.values()])
        norms = tau.flatten(1).norm(dim=1)
        expected = sum(0.2 / n * t for n, t in zip(norms, tau, strict=True))
        torch.testing.assert_close(merged[name], base[name] + expected)


def test_doge_does_not_depend_on_the_scale_of_one_expert_without_mask(model: Make) -> None:
    # λ_i τ_i does not change when τ_i is scaled, and Δ is suppressed here.
    base, experts = model(2)
    scaled = dict(experts)
    scaled["expert1"] = {n: base[n] + 3 * (t - base[n]) for n, t in experts["expert1"].items()}
    settings = {"keep_ratio": 1.0, "learning_rate": 1e-30, "iterations": 1}
    ours = merge("doge_ta", base, experts, **settings)
    theirs = merge("doge_ta", base, scaled, **settings)
    torch.testing.assert_close(ours["wide"], theirs["wide"], rtol=1e-4, atol=1e-6)


def test_masks_rank_all_matrices_of_the_model_together() -> None:
    base = {"big": torch.zeros(2, 5), "small": torch.zeros(2, 5)}
    generator = torch.Generator().manual_seed(0)
    expert = {
        "big": 1 + torch.rand(2, 5, generator=generator),
        "small": torch.rand(2, 5, generator=generator),
    }
    merged = merge("doge_ta", base, {"a": expert}, keep_ratio=0.5, iterations=1)
    assert (merged["big"] != 0).all()
    # Half of the 20 entries, and the one that FusionBench's rank keeps besides.
    assert (merged["small"] != 0).sum() == 1


def test_search_and_defaults_follow_the_model() -> None:
    params = DogeTaParams()
    assert params.resolved(128, 8).basis_size == 16
    assert dataclasses.replace(params, basis_size=3).resolved(128, 8).basis_size == 3


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("doge_ta", {"keep_ratio": 0.0}, r"keep_ratio must lie in \(0, 1\], but got 0.0"),
        ("doge_ta", {"keep_ratio": 30}, r"keep_ratio must lie in \(0, 1\], but got 30"),
        ("doge_ta", {"iterations": -1}, r"iterations must lie in \[0, ∞\), but got -1"),
        ("doge_ta", {"iterations": 2.5}, "iterations must be an integer, but got 2.5"),
        ("doge_ta", {"eta": float("nan")}, "eta must lie in .*, but got nan"),
        ("doge_ta", {"eta": float("inf")}, "eta must lie in .*, but got inf"),
        ("doge_ta", {"eta": "big"}, "eta must be a number, but got 'big'"),
        ("doge_ta", {"basis_size": 2}, "must not exceed the rank .* is 1, but got 2"),
        ("doge_ta", {"basis_size": -1}, "basis_size must lie in"),
        ("ties", {"keep_ratio": 1.5}, r"keep_ratio must lie in \(0, 1\], but got 1.5"),
        ("task_arithmetic", {"coefficient": -0.1}, "coefficient must lie in"),
    ],
)
def test_bad_parameters_are_refused(
    method: str, params: dict[str, float], message: str, model: Make
) -> None:
    with pytest.raises(InputError, match=message):
        merge(method, *model(), **params)


METHOD_FILE = """
from apgd.methods import Method, MethodParams

dropped = Method(name="first", title="T", source="S", params=MethodParams,
                 combine=lambda tau, params, prepared: tau[0])
"""


def test_two_methods_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "dropped_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    package = types.ModuleType("dropped_methods")
    package.__path__ = [str(folder)]
    (folder / "first.py").write_text(METHOD_FILE)
    assert list(Registry(package, Method, "method")) == ["first"]
    (folder / "second.py").write_text(METHOD_FILE)
    with pytest.raises(ValueError, match="two methods are named 'first'"):
        list(Registry(package, Method, "method"))


def test_apgd_comes_before_another_method(model: Make) -> None:
    base, experts = model(4)
    settings = {"apgd_eta": 0.3, "apgd_iterations": 20, "apgd_learning_rate": 1e-2}
    merged = merge("weight_averaging+apgd", base, experts, **settings)
    apgd = ApgdParams(eta=0.3, iterations=20, learning_rate=1e-2)
    for name in ("tall", "wide", "square", "row"):
        tau = torch.stack([state[name] - base[name] for state in experts.values()])
        delta = modification(tau, apgd).delta
        assert delta.norm() > 0.1 * tau.mean(dim=0).norm()
        torch.testing.assert_close(merged[name], base[name] + tau.mean(dim=0) + delta)


def test_ties_after_apgd_ranks_what_was_modified(model: Make) -> None:
    base, experts = model(3)
    settings = {"apgd_eta": 0.3, "apgd_iterations": 20, "apgd_learning_rate": 1e-2}
    merged = merge("ties+apgd", base, experts, keep_ratio=0.4, **settings)
    apgd = ApgdParams(eta=0.3, iterations=20, learning_rate=1e-2)
    modified: dict[str, State] = {name: dict(base) for name in experts}
    for name in ("tall", "wide", "square", "row"):
        tau = torch.stack([state[name] - base[name] for state in experts.values()])
        for expert, changed in zip(experts, tau + modification(tau, apgd).delta, strict=True):
            modified[expert][name] = base[name] + changed
    plain = merge("ties", base, modified, keep_ratio=0.4)
    for name in base:
        torch.testing.assert_close(merged[name], plain[name], rtol=1e-4, atol=1e-6)


def test_apgd_comes_only_once(model: Make) -> None:
    for name in ("doge_ta+apgd", "ties+apgd+apgd"):
        with pytest.raises(InputError, match="has it in it"):
            merge(name, *model())
    with pytest.raises(InputError, match="unknown method 'tias'"):
        merge("tias+apgd", *model())


def test_parameters_before_and_after_apgd_are_kept_apart() -> None:
    params = methods["ties+apgd"].parse({"keep_ratio": 0.5, "apgd_eta": 0.1})
    assert params.inner == methods["ties"].parse({"keep_ratio": 0.5})
    assert params.apgd == ApgdParams(eta=0.1)
    assert params.resolved(100, 5).as_dict() == {**params.as_dict(), "apgd_basis_size": 20}
    with pytest.raises(InputError, match="apgd_eta must lie in"):
        methods["ties+apgd"].parse({"apgd_eta": -1})


def test_parameters_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        methods["ties"].parse({}).coefficient = 2.0  # type: ignore[attr-defined]
    assert issubclass(methods["ties"].params, MethodParams)
