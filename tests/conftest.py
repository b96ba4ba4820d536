from collections.abc import Callable

import pytest
import torch
from torch import Tensor

State = dict[str, Tensor]
SHAPES = {"tall": (12, 5), "wide": (6, 15), "square": (8, 8), "row": (1, 7)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Callable[..., tuple[State, dict[str, State]]]:
    """A base of odd shapes with a bias, and experts fine-tuned from it by random changes."""

    def make(experts: int = 3, seed: int = 0, size: float = 0.05) -> tuple[State, dict[str, State]]:
        generator = torch.Generator().manual_seed(seed)
        base = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
        base["bias"] = torch.randn(5, generator=generator)
        return base, {
            f"expert{i}": {
                n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()
            }
            for i in range(experts)
        }

    return make
