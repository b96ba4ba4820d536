import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apgd import InputError, TaskVectors, merge
from apgd.checkpoints import load_weights, read_metadata, save_weights
from apgd.methods import methods
from tests.conftest import SHAPES, State, same_bits

Make = Callable[..., tuple[State, dict[str, State]]]
EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("doge_ta", {"iterations": 50, "eta": 0.2}),
    "exact": ("doge_ta", {"solver": "exact", "keep_ratio": 0.5}),
    "ties": ("ties", {}),
    "task_arithmetic": ("task_arithmetic", {"coefficient": 0.4}),
    "weight_averaging": ("weight_averaging", {}),
}


def test_task_vectors_are_differences_in_float32(model: Make) -> None:
    base, experts = model(2)
    half = {n: t.half() for n, t in base.items()}
    vectors = TaskVectors(half, experts)
    assert vectors.names == ("row", "square", "tall", "wide")
    assert vectors["tall"].dtype == torch.float32
    assert torch.equal(vectors["tall"][1], experts["expert1"]["tall"] - half["tall"].float())
    assert len(vectors) == 2
    assert vectors.smallest_rank == 1


def test_thresholds_keep_the_largest_over_all_matrices() -> None:
    base = {"a": torch.zeros(2, 5), "b": torch.zeros(1, 10)}
    values = torch.arange(1.0, 21.0)
    expert = {"a": -values[:10].view(2, 5), "b": values[10:].view(1, 10)}
    vectors = TaskVectors(base, {"x": expert, "y": {n: 2 * t for n, t in expert.items()}})
    for keep, threshold in ((0.3, 14.0), (0.05, 19.0), (1.0, 1.0), (0.001, 20.0)):
        assert vectors.magnitude_thresholds(keep).tolist() == [threshold, 2 * threshold]


def test_files_and_state_dicts_merge_alike(model: Make, tmp_path: Path) -> None:
    base, experts = model(2)
    save_weights(tmp_path / "base.safetensors", base)
    paths = {}
    for name, state in experts.items():
        paths[name] = str(tmp_path / f"{name}.safetensors")
        save_weights(tmp_path / f"{name}.safetensors", state)
    from_files = merge("doge_ta", tmp_path / "base.safetensors", paths, iterations=5)
    in_memory = merge("doge_ta", base, experts, iterations=5)
    assert all(torch.equal(from_files[n], in_memory[n]) for n in base)


def test_double_precision_bases_stay_double(model: Make) -> None:
    base, experts = model(1)
    wide = {n: t.double() for n, t in base.items()}
    assert merge("ties", wide, experts)["bias"].dtype == torch.float64


def test_metadata_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_weights(path, {"w": torch.ones(2)}, {"step": 3, "names": ["a"]})
    assert read_metadata(path) == {"step": 3, "names": ["a"]}
    assert torch.equal(load_weights(path, "x")["w"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("name", list(EVERY))
class TestTypes:
    def test_mixed_types_merge_as_if_converted_before(self, name: str, model: Make) -> None:
        method, params = EVERY[name]
        base, experts = model(3)
        types = dict(zip(experts, (torch.float16, torch.bfloat16, torch.float32), strict=True))
        mixed = {e: {n: t.to(types[e]) for n, t in state.items()} for e, state in experts.items()}
        by_hand = {e: {n: t.float() for n, t in state.items()} for e, state in mixed.items()}
        for dtype in types.values():
            low = {n: t.to(dtype) for n, t in base.items()}
            merged = merge(method, low, mixed, **params)
            expected = merge(method, {n: t.float() for n, t in low.items()}, by_hand, **params)
            assert all(same_bits(merged[n], expected[n].to(dtype)) for n in base)
            assert not same_bits(merged["wide"], low["wide"])

    def test_double_bases_lose_no_digits(self, name: str, model: Make) -> None:
        method, params = EVERY[name]
        base, experts = model(2)
        fine = {n: t.double() + 1e-10 for n, t in base.items()}
        merged = merge(method, fine, experts, **params)
        delta = methods[method].merge(TaskVectors(fine, experts), methods[method].parse(params))
        for parameter in delta:
            assert same_bits(merged[parameter], fine[parameter] + delta[parameter].double())
        assert same_bits(merged["bias"], fine["bias"])


def test_integers_are_not_merged(model: Make) -> None:
    base, experts = model(2)
    for number, state in enumerate((base, *experts.values())):
        state["table"] = torch.full((3, 4), number)
        state["mask"] = torch.tensor([[number == 0]])
    merged = merge("task_arithmetic", base, experts)
    assert merged.summary.not_merged == ("bias", "mask", "table")
    assert all(same_bits(merged[name], base[name]) for name in ("mask", "table"))


def test_types_of_eight_bits_may_stay_as_they_are(model: Make) -> None:
    base, experts = model(2)
    for state in (base, *experts.values()):
        state["low"] = torch.ones(2, 2).to(torch.float8_e4m3fn)
    merged = merge("ties", base, experts, select=lambda n, _t: n == "wide")
    assert same_bits(merged["low"], base["low"])


def test_bases_of_eight_bits_merge(model: Make) -> None:
    base, experts = model(2)
    low = {n: t.to(torch.float8_e4m3fn) for n, t in base.items()}
    merged = merge("task_arithmetic", low, experts)
    expected = merge("task_arithmetic", {n: t.float() for n, t in low.items()}, experts)
    assert all(same_bits(merged[n], t.to(torch.float8_e4m3fn)) for n, t in expected.items())


@pytest.mark.parametrize(
    ("base", "expert"),
    [
        (torch.full((2, 2), 6e4).half(), torch.full((2, 2), 7e4)),
        (
            torch.full((2, 2), 1e300, dtype=torch.float64),
            torch.full((2, 2), 1e300, dtype=torch.float64),
        ),
        (torch.full((2, 2), 3e38), torch.full((2, 2), -3e38)),
    ],
)
def test_results_beyond_the_range_of_their_type_are_refused(base: Tensor, expert: Tensor) -> None:
    with pytest.raises(InputError, match="w "):
        merge("task_arithmetic", {"w": base}, {"x": {"w": expert}}, coefficient=1.0)


class TestTied:
    @pytest.fixture
    def tied(self, model: Make) -> tuple[State, dict[str, State]]:
        """`head` is `wide` under another name; in the experts, as an equal copy."""
        base, experts = model(3)
        copies = {e: state | {"head": state["wide"].clone()} for e, state in experts.items()}
        return base | {"head": base["wide"]}, copies

    @pytest.mark.parametrize("name", list(EVERY))
    def test_both_names_get_what_the_parameter_alone_gets(
        self, name: str, tied: tuple[State, dict[str, State]], model: Make
    ) -> None:
        method, params = EVERY[name]
        merged, alone = merge(method, *tied, **params), merge(method, *model(3), **params)
        assert merged.keys() == {*alone, "head"}
        assert all(same_bits(merged[n], alone[n]) for n in alone)
        assert same_bits(merged["head"], alone["wide"])
        assert merged.summary.tied == {"wide": "head"}
        assert merged.summary.not_merged == ("bias",)
        assert [layer.name for layer in merged.summary.layers] == ["head", "row", "square", "tall"]

    def test_thresholds_count_them_once(
        self, tied: tuple[State, dict[str, State]], model: Make
    ) -> None:
        once, alone = TaskVectors(*tied), TaskVectors(*model(3))
        copied = TaskVectors(tied[0] | {"head": tied[0]["wide"].clone()}, tied[1])
        for keep in (0.05, 0.3, 0.7):
            found = once.magnitude_thresholds(keep)
            assert torch.equal(found, alone.magnitude_thresholds(keep))
        assert not torch.equal(found, copied.magnitude_thresholds(keep))

    def test_copies_are_not_tied(self, tied: tuple[State, dict[str, State]]) -> None:
        base, experts = tied
        base["head"] = base["wide"].clone()
        merged = merge("task_arithmetic", base, experts)
        assert merged.summary.tied == {}
        assert len(merged.summary.layers) == 5

    def test_transposed_views_are_not_tied(self, model: Make) -> None:
        base, experts = model(2)
        for state in (base, *experts.values()):
            state["turned"] = state["wide"].T
        merged = merge("task_arithmetic", base, experts)
        assert merged.summary.tied == {}
        assert same_bits(merged["turned"], merged["wide"].T)

    def test_an_untied_expert_is_refused(self, tied: tuple[State, dict[str, State]]) -> None:
        tied[1]["expert1"]["wide"][0, 0] += 1
        with pytest.raises(
            InputError, match="wide and head are tied .* but differ in expert expert1; untie"
        ):
            merge("ties", *tied)

    def test_the_first_name_stands_for_both(self, tied: tuple[State, dict[str, State]]) -> None:
        merged = merge("ties", *tied, select=lambda name, _tensor: name == "head")
        assert same_bits(merged["wide"], merged["head"])
        assert not same_bits(merged["wide"], tied[0]["wide"])
        assert merged.summary.not_merged == ("bias", "row", "square", "tall")

    def test_the_second_name_alone_is_refused(self, tied: tuple[State, dict[str, State]]) -> None:
        with pytest.raises(InputError, match="selected together, but wide is and head is not"):
            merge("ties", *tied, select=lambda name, _tensor: name in ("wide", "tall"))
        with pytest.raises(InputError, match="selected"):
            merge("ties", *tied, select=lambda name, _tensor: name == "wide")

    def test_neither_selected_neither_merged(self, tied: tuple[State, dict[str, State]]) -> None:
        merged = merge("ties", *tied, select=lambda name, _tensor: name == "tall")
        assert merged.summary.not_merged == ("bias", "head", "row", "square", "wide")
        assert same_bits(merged["wide"], tied[0]["wide"])
        assert merged["wide"].data_ptr() != tied[0]["wide"].data_ptr()


@pytest.mark.parametrize("name", list(EVERY))
class TestSummary:
    def test_it_tells_what_was_merged(self, name: str, model: Make) -> None:
        method, params = EVERY[name]
        base, experts = model(3)
        merged = merge(method, base, experts, **params)
        summary = merged.summary
        assert summary.method == method
        assert summary.params == methods[method].parse(params).as_dict()
        assert summary.params.items() >= params.items()
        assert summary.experts == ("expert0", "expert1", "expert2")
        assert (summary.not_merged, summary.tied) == (("bias",), {})
        assert [layer.name for layer in summary.layers] == sorted(SHAPES)
        assert summary.seconds >= sum(layer.seconds for layer in summary.layers) > 0

    def test_norms_are_those_of_the_matrices(self, name: str, model: Make) -> None:
        method, params = EVERY[name]
        base, experts = model(3)
        merged = merge(method, base, experts, **params)
        for layer in merged.summary.layers:
            tau = [state[layer.name] - base[layer.name] for state in experts.values()]
            assert layer.shape == SHAPES[layer.name]
            assert layer.task_norms == pytest.approx([float(t.norm()) for t in tau], rel=1e-6)
            change = merged[layer.name] - base[layer.name]
            assert layer.delta_norm == pytest.approx(float(change.norm()), rel=1e-4)

    def test_the_kept_shares_average_to_the_keep_ratio(self, name: str, model: Make) -> None:
        method, params = EVERY[name]
        summary = merge(method, *model(3), **params).summary
        if method in ("task_arithmetic", "weight_averaging"):
            assert all(layer.details == {} for layer in summary.layers)
            return
        sizes = {name: rows * columns for name, (rows, columns) in SHAPES.items()}
        total, keep = sum(sizes.values()), summary.params["keep_ratio"]
        assert isinstance(keep, float)
        for expert in range(3):
            shares = {la.name: la.details["kept"][expert] for la in summary.layers}  # type: ignore[index]
            kept = sum(share * sizes[n] for n, share in shares.items())
            assert kept == pytest.approx(int(keep * total) + 1)  # the threshold itself is kept


@pytest.mark.parametrize(
    "params",
    [
        {"iterations": 50, "learning_rate": 1e-3, "eta": 0.2},
        {"solver": "exact", "eta": 0.15},
        {"solver": "exact", "basis_size": 0},
        {"iterations": 20, "basis_size": 1, "shared_basis_size": 0},
    ],
)
def test_doge_ta_tells_coefficients_subspaces_and_losses(
    params: dict[str, Any], model: Make
) -> None:
    base, experts = model(3)
    summary = merge("doge_ta", base, experts, **params).summary
    eta = float(summary.params["eta"])  # type: ignore[arg-type]
    for layer in summary.layers:
        details = layer.details
        assert details["coefficients"] == pytest.approx([eta / norm for norm in layer.task_norms])
        basis = params.get("shared_basis_size", params.get("basis_size", min(layer.shape) // 3))
        assert details["subspace_size"] == basis
        tau = torch.stack([s[layer.name] - base[layer.name] for s in experts.values()]).double()
        combined = torch.einsum("i,imn->mn", eta / tau.flatten(1).norm(dim=1), tau)
        gaps = (tau * (tau - combined)).sum(dim=2)
        assert details["loss_before"] == pytest.approx(float(gaps.square().sum()), rel=1e-4)
        assert 0 <= details["loss_after"] < details["loss_before"]  # type: ignore[operator]


class TestRefusals:
    def test_no_experts(self, model: Make) -> None:
        with pytest.raises(InputError, match="at least one expert"):
            merge("ties", model()[0], {})

    def test_missing_key(self, model: Make) -> None:
        base, experts = model()
        del experts["expert1"]["wide"]
        with pytest.raises(InputError, match="expert expert1 lacks 1 of them, .* wide"):
            merge("ties", base, experts)

    def test_extra_key(self, model: Make) -> None:
        base, experts = model()
        experts["expert1"]["more"] = torch.ones(2)
        with pytest.raises(InputError, match="expert expert1 has in excess 1 .* more"):
            merge("ties", base, experts)

    def test_other_shape(self, model: Make) -> None:
        base, experts = model()
        experts["expert0"]["wide"] = torch.ones(3, 3)
        with pytest.raises(InputError, match=r"wide of expert expert0 is \(3, 3\) .* \(6, 15\)"):
            merge("ties", base, experts)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, model: Make, value: float) -> None:
        base, experts = model()
        experts["expert2"]["wide"][0, 0] = value
        with pytest.raises(InputError, match="wide of expert expert2 holds NaN or infinite"):
            merge("ties", base, experts)

    def test_integer_parameter(self, model: Make) -> None:
        base, experts = model()
        base["wide"] = base["wide"].long()
        with pytest.raises(InputError, match="wide of expert expert0 is torch.float32 where"):
            merge("ties", base, experts)
        for state in experts.values():
            state["wide"] = state["wide"].long()
        assert "wide" in merge("ties", base, experts).summary.not_merged
        with pytest.raises(InputError, match="wide of the base is torch.int64"):
            merge("ties", base, experts, select=lambda n, _t: n == "wide")

    def test_nothing_selected(self, model: Make) -> None:
        with pytest.raises(InputError, match="no parameter of the base is selected"):
            merge("ties", *model(), select=lambda _n, _t: False)

    def test_a_vector_selected(self, model: Make) -> None:
        with pytest.raises(InputError, match=r"must be matrices, but bias has shape \(5,\)"):
            merge("ties", *model(), select=lambda n, _t: n == "bias")

    def test_missing_file(self, model: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"the base \(.*none.safetensors\) does not exist"):
            merge("ties", tmp_path / "none.safetensors", model()[1])

    @pytest.mark.parametrize("length", [0, 4, 100, -8])
    def test_truncated_file(self, model: Make, tmp_path: Path, length: int) -> None:
        path = tmp_path / "cut.safetensors"
        base, experts = model()
        save_weights(path, base)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(InputError, match="not a whole safetensors file"):
            merge("ties", path, experts)

    def test_something_else_than_weights(self, model: Make) -> None:
        with pytest.raises(InputError, match="'w' is a list"):
            merge("ties", {"w": [1.0]}, model()[1])  # type: ignore[dict-item]
        with pytest.raises(InputError, match="got int"):
            merge("ties", 3, model()[1])  # type: ignore[arg-type]

    def test_differing_kinds_of_numbers(self, model: Make) -> None:
        base, experts = model()
        experts["expert1"]["bias"] = experts["expert1"]["bias"].long()
        with pytest.raises(
            InputError,
            match="bias of expert expert1 is torch.int64 where the base has torch.float32",
        ):
            merge("ties", base, experts)

    def test_an_empty_matrix_selected(self, model: Make) -> None:
        base, experts = model()
        for state in (base, *experts.values()):
            state["none"] = torch.zeros(0, 4)
        with pytest.raises(InputError, match=r"must not be empty, but none .* shape \(0, 4\)"):
            merge("ties", base, experts)
        merged = merge("ties", base, experts, select=lambda n, _t: n == "wide")
        assert same_bits(merged["none"], base["none"])


def test_relative_norms() -> None:
    base = {"a": torch.full((2, 2), 3.0), "b": torch.full((4, 1), -2.0), "bias": torch.ones(2)}
    tuned = {"a": base["a"] + 1.0, "b": base["b"] * 1.5, "bias": torch.zeros(2)}
    vectors = TaskVectors(base, {"one": tuned, "same": base})
    # ‖τ‖² = 4·1 + 4·1, ‖θ_0‖² = 4·9 + 4·4; the bias is not merged.
    expected = torch.tensor([math.sqrt(8 / 52), 0.0], dtype=torch.float64)
    torch.testing.assert_close(vectors.relative_norms(), expected)
