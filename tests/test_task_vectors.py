from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import InputError, TaskVectors, merge
from apgd.checkpoints import load_weights, read_metadata, save_weights
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]


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
