"""Adapters: the same weights as PEFT's, exact task vectors, and nothing unknown let through."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import apgd.cli
from apgd import InputError
from apgd.checkpoints import load_weights, open_weights, save_weights
from apgd.lora import Adapted, Adapter, Factors, write_adapter
from apgd.task_vectors import TaskVectors
from tests.lora.conftest import State, loaded_by_peft

Make = Callable[..., tuple[Path, State]]
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["wi_0", "wo", "k"], "lora_alpha": 1},
        {"rank_pattern": {"v": 2, "encoder.block.1.layer.0.SelfAttention.q": 7}},
        {"alpha_pattern": {r"decoder\..*\.q": 20, "q": 3}, "rank_pattern": {"^encoder.*v": 1}},
        {"alpha_pattern": {"v": 1}, "rank_pattern": {"EncDecAttention.v": 9}, "use_rslora": True},
    ],
)
def test_weights_are_those_that_peft_merges(
    peft_adapter: Make, base: State, options: dict[str, Any]
) -> None:
    folder, merged = peft_adapter(**options)
    found = load_weights(folder, "expert", base)
    assert set(found) == set(merged) == set(base)
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    changed = {name for name in base if not torch.equal(found[name], base[name])}
    assert changed == set(Adapter("expert", folder).names())
    assert len(changed) >= 12


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(12, 5)
        nn.init.normal_(self.c_attn.weight)


def test_layers_that_keep_the_transpose(peft_adapter: Make) -> None:
    model = Transposed()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder, merged = peft_adapter(model=model, target_modules=["c_attn"], fan_in_fan_out=True)
    found = load_weights(folder, "expert", base)
    assert found["c_attn.weight"].shape == (5, 12)
    torch.testing.assert_close(found["c_attn.weight"], merged["c_attn.weight"], rtol=0, atol=1e-6)
    assert not torch.equal(found["c_attn.weight"], base["c_attn.weight"])


def test_task_vectors_are_exact(peft_adapter: Make, base: State) -> None:
    base[QUERY] *= 100  # beside large weights a difference of sums loses ΔW's last bits
    folder, _ = peft_adapter()
    vectors = TaskVectors(base, {"a": folder, "whole": load_weights(folder, "expert", base)})
    factors = load_file(folder / "adapter_model.safetensors")
    module = "base_model.model." + QUERY.removesuffix(".weight")
    a, b = (factors[f"{module}.lora_{side}.weight"].double() for side in "AB")
    exact = 1.5 * b @ a
    tau = vectors[QUERY].double()
    error = [float((one - exact).norm() / exact.norm()) for one in tau]
    assert torch.equal(tau[0], exact.float().double())
    assert error[0] < 6e-8 < 1e-5 < error[1]
    untouched = vectors["encoder.block.0.layer.0.SelfAttention.k.weight"]
    assert not untouched[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_factors_are_multiplied_wide(
    peft_adapter: Make, base: State, dtype: torch.dtype
) -> None:
    folder, merged = peft_adapter()
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    tau = TaskVectors(base, {"a": folder})[QUERY][0]
    factors = load_file(file)
    module = "base_model.model." + QUERY.removesuffix(".weight")
    a, b = (factors[f"{module}.lora_{side}.weight"].double() for side in "AB")
    assert torch.equal(tau, (1.5 * b @ a).float())
    torch.testing.assert_close(tau, merged[QUERY] - base[QUERY], rtol=0.05, atol=1e-4)


def test_adapters_mix_with_whole_experts_and_travel(peft_adapter: Make, base: State) -> None:
    first, merged = peft_adapter("first")
    second, _ = peft_adapter("second", seed=1, r=2)
    vectors = TaskVectors(base, {"a": first, "b": second, "c": merged}, keep=False)
    assert vectors[QUERY].shape == (3, 32, 32)
    again = pickle.loads(pickle.dumps(vectors))  # noqa: S301 - made a line above
    assert torch.equal(again[QUERY], vectors[QUERY])
    torch.testing.assert_close(vectors[QUERY][0], vectors[QUERY][2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("out", ["merged.safetensors", "merged"])
def test_the_command_merges_adapters(
    tmp_path: Path, peft_adapter: Make, base: State, out: str
) -> None:
    first, _ = peft_adapter("first")
    second, _ = peft_adapter("second", seed=1)
    save_weights(tmp_path / "base.safetensors", base)
    status = apgd.cli.main(
        ["merge", "--method", "task_arithmetic", "--coefficient", "0.5",
         "--base", str(tmp_path / "base.safetensors"), "--out", str(tmp_path / out),
         "--expert", f"a={first}", "--expert", f"b={second}"]
    )  # fmt: skip
    assert status == 0
    made = load_weights(tmp_path / out, "the result")
    for name, tensor in base.items():
        change = sum(
            (open_changes(folder, base, name) for folder in (first, second)), torch.zeros(())
        )
        torch.testing.assert_close(made[name], tensor + 0.5 * change, rtol=0, atol=1e-7)


def open_changes(folder: Path, base: State, name: str) -> Tensor:
    weights = open_weights(folder, "expert", open_weights(base, "base"))
    assert isinstance(weights, Adapted)
    change = weights.change(name)
    return torch.zeros(()) if change is None else change


def test_written_adapters_are_what_peft_reads(tmp_path: Path, base: State) -> None:
    names = [n for n in base if n.endswith((".k.weight", ".wi_1.weight"))]
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: Factors(
            torch.randn(rank, base[name].shape[1], generator=generator) / 10,
            torch.randn(base[name].shape[0], rank, generator=generator) / 10,
            scale,
        )
        for name, rank, scale in zip(names, (1, 2, 3) * 9, (1.0, 0.5, 2.0) * 9, strict=False)
    }
    write_adapter(tmp_path / "a", factors)
    ours = load_weights(tmp_path / "a", "expert", base)
    theirs = loaded_by_peft(tmp_path / "a")
    for name, tensor in base.items():
        wanted = tensor + factors[name].change() if name in factors else tensor
        torch.testing.assert_close(ours[name], wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs[name], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "must be of the type LORA, but is LOHA"),
        ({"bias": "all"}, "must leave biases alone"),
        ({"use_dora": True}, "sets use_dora to True"),
        ({"modules_to_save": ["lm_head"]}, r"sets modules_to_save to \['lm_head'\]"),
        ({"lora_bias": True}, "sets lora_bias to True"),
        ({"invented_later": 3}, "sets invented_later to 3"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base too"),
        ({"r": 5}, "must have the rank 5 that adapter_config.json names, but its factors have 4"),
        ({"r": None}, "adapter_config.json of .* is damaged"),
        ({"rank_pattern": {"(": 3}}, "must map regular expressions to numbers"),
    ],
)
def test_what_is_not_plain_is_refused(
    peft_adapter: Make, base: State, changes: dict[str, Any], message: str
) -> None:
    folder = edited(peft_adapter()[0], **changes)
    with pytest.raises(InputError, match=message):
        load_weights(folder, "expert", base)


def test_keys_must_match(peft_adapter: Make, base: State) -> None:
    folder, _ = peft_adapter()
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    key = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, file)
        with pytest.raises(InputError, match=message):
            load_weights(folder, "expert", base)

    refused({k: t for k, t in whole.items() if k != key}, "lacks lora_A of encoder.block.0")
    refused(whole | {"base_model.model.lm_head.weight": torch.ones(2)}, "but it holds base_model")
    refused(whole | {"encoder.q.lora_A.weight": torch.ones(2, 2)}, "but it holds encoder.q.lora_A")
    refused(whole | {key: torch.ones(4)}, r"factors must be matrices .* \(4,\) and \(32, 4\)")
    refused(whole | {key: torch.ones(4, 31)}, r"is \(32, 31\) where the base has \(32, 32\)")
    odd = {k.replace("encoder.block.0", "tower.block.0"): t for k, t in whole.items()}
    refused(odd, "changes tower.block.0.layer.0.SelfAttention.q.weight, which the base lacks")
    refused({"base_model.model.x.lora_C.weight": torch.ones(2)}, "but it holds")
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"other formats \(.bin\) could run code"):
        load_weights(folder, "expert", base)


def test_an_adapter_is_no_base(peft_adapter: Make, base: State) -> None:
    folder, _ = peft_adapter()
    with pytest.raises(InputError, match="the base must be whole weights, but .* is an adapter"):
        TaskVectors(folder, {"a": base})
