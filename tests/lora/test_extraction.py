"""From weights back to adapters: exact at the true rank, the best one below it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import apgd.cli
from apgd import InputError
from apgd.checkpoints import load_weights, open_weights, read_metadata, save_weights
from apgd.lora import Adapter, extract, write_adapter
from apgd.lora.extraction import truncated
from apgd.task_vectors import two_dimensional
from tests.lora.conftest import State, loaded_by_peft

Make = Callable[..., tuple[Path, State]]


def run(*arguments: object) -> int:
    return apgd.cli.main(["extract-lora", *map(str, arguments)])


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30), (1, 9)])
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_the_error_is_that_of_the_singular_values_left_out(
    shape: tuple[int, int], rank: int
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors, error = truncated(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    left_out = float(values[rank:].square().sum().sqrt())
    assert error == pytest.approx(left_out, rel=1e-6, abs=1e-5)
    distance = float((factors.change() - matrix).norm())
    assert distance == pytest.approx(left_out, rel=1e-5, abs=1e-5)
    assert factors.a.shape == (min(rank, *shape), shape[1])


def test_the_true_rank_gives_the_adapter_back(
    tmp_path: Path, peft_adapter: Make, base: State
) -> None:
    folder, merged = peft_adapter()
    found = extract(open_weights(base, "base"), open_weights(merged, "merged"), 4, two_dimensional)
    # The merged weights are float32: what they round off ΔW is left, and nothing else.
    assert found.error < 2e-5
    assert max(found.errors.values()) < 2e-5
    original = Adapter("original", folder)
    assert set(found.factors) == set(original.names())
    for name, factors in found.factors.items():
        wanted = original.factors(name).change()
        assert float((factors.change() - wanted).norm() / wanted.norm()) < 2e-5
    write_adapter(tmp_path / "again", found.factors)
    for name, tensor in loaded_by_peft(tmp_path / "again").items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)


def test_a_merge_of_adapters_needs_the_sum_of_their_ranks(peft_adapter: Make, base: State) -> None:
    _, first = peft_adapter("first")
    _, second = peft_adapter("second", seed=1)
    merged = {name: first[name] + second[name] - base[name] for name in base}
    opened = open_weights(base, "base"), open_weights(merged, "merged")
    errors = [extract(*opened, rank, two_dimensional).error for rank in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[2] > 0.05
    assert errors[3] < 2e-5


def test_the_command(
    tmp_path: Path, peft_adapter: Make, base: State, capsys: pytest.CaptureFixture[str]
) -> None:
    _, merged = peft_adapter()
    save_weights(tmp_path / "base.safetensors", base)
    save_weights(tmp_path / "merged.safetensors", merged)
    asked: list[Any] = ["--base", tmp_path / "base.safetensors", "--out", tmp_path / "made"]
    model = ["--model", tmp_path / "merged.safetensors"]
    assert run(*asked, *model, "--rank", 3) == 0
    said = capsys.readouterr().out
    assert "wrote 12 changes of rank 3" in said
    error = read_metadata(tmp_path / "made" / "adapter_model.safetensors")["relative_error"]
    assert isinstance(error, float)
    assert f"relative error {error:.3g} over all" in said
    kept = load_weights(tmp_path / "made", "adapter", base)
    missed = sum(float((kept[n] - merged[n]).double().square().sum()) for n in base) ** 0.5
    whole = sum(float((base[n] - merged[n]).double().square().sum()) for n in base) ** 0.5
    assert missed / whole == pytest.approx(error, rel=1e-3)
    assert run(*asked, *model, "--rank", 3) == 2
    assert "--out must be a new or empty folder" in capsys.readouterr().err


def test_what_an_adapter_cannot_hold_is_refused(peft_adapter: Make, base: State) -> None:
    _, merged = peft_adapter()
    weights = open_weights(base, "base")

    def refused(message: str, rank: int = 2, **changes: torch.Tensor) -> None:
        names = {key.replace("__", "."): tensor for key, tensor in changes.items()}
        with pytest.raises(InputError, match=message):
            extract(weights, open_weights(merged | names, "model"), rank, two_dimensional)

    norm = base["encoder.final_layer_norm.weight"]
    refused("encoder.final_layer_norm.weight of model differs too",
            encoder__final_layer_norm__weight=norm + 1)  # fmt: skip
    refused("the rank must be at least 1, but got 0", 0)
    refused("must have the same parameters, but other is only in one", other=norm)
    refused("must have the base's shape", lm_head__weight=torch.ones(3, 3))
    refused("must be finite, but lm_head.weight", lm_head__weight=torch.full((96, 32), torch.nan))
    with pytest.raises(InputError, match="must differ from base, but it does not"):
        extract(weights, weights, 2, two_dimensional)
