from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from tests.tiny_t5 import tiny_t5

State = dict[str, Tensor]


@pytest.fixture
def base() -> State:
    return {name: t.clone() for name, t in tiny_t5().state_dict().items()}


@pytest.fixture
def peft_adapter(tmp_path: Path) -> Callable[..., tuple[Path, State]]:
    """An adapter written by PEFT with random factors, and the weights that PEFT merges it to."""

    def make(name: str = "adapter", model: nn.Module | None = None, **options: Any) -> Any:
        seed = options.pop("seed", 0)
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "v"]} | options
        model = tiny_t5() if model is None else model
        adapted: Any = get_peft_model(model, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(tmp_path / name)
        merged = adapted.merge_and_unload().state_dict()
        return tmp_path / name, {key: tensor.clone() for key, tensor in merged.items()}

    return make


def loaded_by_peft(folder: Path) -> State:
    """What PEFT makes of a folder beside the tiny T5."""
    model: Any = PeftModel.from_pretrained(tiny_t5(), folder)  # type: ignore[arg-type]
    return {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}
