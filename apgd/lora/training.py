"""Adapters in training: PEFT's layers inside a suite's model."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from apgd.errors import InputError
from apgd.lora.adapters import Factors
from apgd.suites import LoraSettings

_NAME = "default"


def attach(
    model: nn.Module, settings: LoraSettings, seed: int, is_adapted: Callable[[str], bool]
) -> None:
    """Put a fresh adapter beside the linear layers that the settings name, and freeze all others.

    A starts random, B at zero, so that nothing changes at first.

    Args:
        model: changed in place; its own class and interface stay.
        settings: rank, alpha, targets and dropout.
        seed: of A's random numbers.
        is_adapted: whether a parameter, by its name, may be changed at all.

    Raises:
        InputError: where no linear layer has one of the names.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [
        name
        for name in linear
        if name.split(".")[-1] in settings.targets and is_adapted(f"{name}.weight")
    ]
    if not targets:
        raise InputError(
            f"lora.targets must name linear layers of the model, but none is called "
            f"{' or '.join(settings.targets)}; the last one is {linear[-1:]}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_A." in name or ".lora_B." in name)


def factors_of(model: nn.Module) -> dict[str, Factors]:
    """The factors of a model that `attach` changed, by the name of the parameter in the base."""
    return {
        f"{name}.weight": Factors(
            _weight(layer.lora_A), _weight(layer.lora_B), float(layer.scaling[_NAME])
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _weight(layers: Any) -> torch.Tensor:
    tensor: torch.Tensor = layers[_NAME].weight.detach().float().cpu()
    return tensor
