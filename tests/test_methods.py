"""One contract for every registered method, and closed forms for each."""

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import InputError, TaskVectors, merge
from apgd.methods import Limit, Method, MethodParams, methods
from apgd.methods.doge_ta import DogeTaParams
from apgd.registry import Registry
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]
EVERY = list(methods)


@pytest.mark.parametrize("name", EVERY)
class TestContract:
    def test_is_pure_and_deterministic(self, name: str, model: Make) -> None:
        base, experts = model()
        kept = {n: t.clone() for n, t in base.items()}
        kept_experts = {e: {n: t.clone() for n, t in s.items()} for e, s in experts.items()}
        first, second = merge(name, base, experts), merge(name, base, experts)
        for parameter in base:
            assert torch.equal(first[parameter], second[parameter])
            assert torch.equal(base[parameter], kept[parameter])
            for expert in experts:
                assert torch.equal(experts[expert][parameter], kept_experts[expert][parameter])

    def test_keeps_keys_dtypes_and_unselected_tensors(self, name: str, model: Make) -> None:
        base, experts = model()
        half = {n: t.half() for n, t in base.items()}
        merged = merge(name, half, experts, select=lambda n, _t: n == "tall")
        assert list(merged) == sorted(half)
        assert all(merged[n].dtype == torch.float16 for n in half)
        assert all(torch.equal(merged[n], half[n]) for n in half if n != "tall")
        assert not torch.equal(merged["tall"], half["tall"])
        assert all(torch.isfinite(t).all() for t in merged.values())

    def test_order_of_experts_does_not_matter(self, name: str, model: Make) -> None:
        base, experts = model(5)
        merged = merge(name, base, experts)
        turned = merge(name, base, dict(reversed(experts.items())))
        for parameter in base:
            torch.testing.assert_close(merged[parameter], turned[parameter], rtol=1e-4, atol=1e-6)

    def test_kept_and_reread_task_vectors_agree(self, name: str, model: Make) -> None:
        base, experts = model()
        method = methods[name]
        kept = TaskVectors(base, experts, keep=True)
        reread = TaskVectors(base, experts, keep=False)
        params = method.parse({})
        ours, theirs = method.merge(kept, params), method.merge(reread, params)
        assert all(torch.equal(ours[n], theirs[n]) for n in kept.names)

    def test_experts_equal_to_the_base_change_nothing(self, name: str, model: Make) -> None:
        base, _ = model()
        merged = merge(name, base, {"a": base, "b": base})
        for parameter in base:
            torch.testing.assert_close(merged[parameter], base[parameter], rtol=0, atol=1e-7)

    def test_one_expert_merges(self, name: str, model: Make) -> None:
        base, experts = model(1)
        merged = merge(name, base, experts)
        assert all(torch.isfinite(t).all() for t in merged.values())

    def test_parameters_are_declared_completely(self, name: str) -> None:
        for declared in methods[name].params.declared():
            assert declared.meaning
            declared.check(declared.default)
            if declared.search is not None:
                low, high = declared.search
                declared.check(declared.kind(low))
                if isinstance(high, Limit):
                    assert declared.high is high
                else:
                    assert low < high
                    declared.check(declared.kind(high))
                assert not declared.log or low > 0

    def test_unknown_parameter_is_refused(self, name: str, model: Make) -> None:
        base, experts = model()
        with pytest.raises(InputError, match=f"unknown parameter 'shape' of method {name}"):
            merge(name, base, experts, shape=1)


def test_unknown_method_lists_the_known_ones(model: Make) -> None:
    with pytest.raises(InputError, match="'doge'; known are: doge_ta, task_arithmetic, ties"):
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
    merged = merge("ties", base, experts, coefficient=1.0, keep_ratio=1.0)["w"]
    # Elected signs: +, −, −, + (0.3 tips it), +; then the mean of the entries that agree.
    torch.testing.assert_close(merged, torch.tensor([[3.0, -4.0, -6.0, (2.0 + 0.3) / 2, 1.0]]))
    trimmed = merge("ties", base, experts, coefficient=0.5, keep_ratio=0.2)["w"]
    # The two largest of five entries each: a {4, −3}, b {−5, ±2}, c {−6, 2}.
    torch.testing.assert_close(trimmed, 0.5 * torch.tensor([[3.0, -4.0, -6.0, -2.0, 0.0]]))


def test_ties_breaks_exact_ties_by_the_majority() -> None:
    base = {"w": torch.zeros(1, 4)}
    experts = {
        "a": {"w": torch.tensor([[1.0, -2.0, -3.0, -4.0]])},
        "b": {"w": torch.tensor([[-1.0, -2.0, -3.0, -4.0]])},
    }
    merged = merge("ties", base, experts, coefficient=1.0, keep_ratio=1.0)["w"]
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
        ("doge_ta", {"iterations": 0}, r"iterations must lie in \[1, ∞\), but got 0"),
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


METHOD_FILE = '''
from dataclasses import dataclass
from apgd.methods import Method, MethodParams

@dataclass(frozen=True, kw_only=True)
class Params(MethodParams):
    """None."""

dropped = Method(name="{name}", title="T", source="S", params=Params,
                 combine=lambda tau, params, prepared: tau[0])
'''


def package(folder: Path, name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    return made


def test_a_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "dropped_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text(METHOD_FILE.format(name="first"))
    found = Registry(package(folder, "dropped_methods"), Method, "method")
    assert list(found) == ["first"]
    base, experts = model(2)
    delta = found["first"].merge(TaskVectors(base, experts), found["first"].parse({}))
    torch.testing.assert_close(delta["row"], experts["expert0"]["row"] - base["row"])
    (folder / "second.py").write_text(METHOD_FILE.format(name="first"))
    with pytest.raises(ValueError, match="two methods are named 'first'"):
        list(Registry(package(folder, "dropped_methods"), Method, "method"))


def test_parameters_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        methods["ties"].parse({}).coefficient = 2.0  # type: ignore[attr-defined]
    assert issubclass(methods["ties"].params, MethodParams)
