from pathlib import Path

import pytest
import torch

from apgd.checkpoints import save_weights
from tests.streaming.folders import Files, Make, States


@pytest.fixture
def states(model: Make) -> States:
    """A base and three experts, with integers that are the same in all."""
    base, experts = model(3)
    integers = {"steps": torch.tensor(7), "mask": torch.tensor([[True, False]])}
    return base | integers, {name: state | integers for name, state in experts.items()}


@pytest.fixture
def files(tmp_path: Path, states: States) -> Files:
    base, experts = states
    paths = {name: tmp_path / f"{name}.safetensors" for name in experts}
    save_weights(tmp_path / "base.safetensors", base)
    for name, path in paths.items():
        save_weights(path, experts[name])
    return tmp_path / "base.safetensors", paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
