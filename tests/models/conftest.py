from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from apgd.models.clip_geometry import GEOMETRIES, Geometry

State = dict[str, Tensor]


def reduced(name: str, *, vision: int, text: int = 1) -> Geometry:
    """One of the paper's models with fewer blocks."""
    whole = GEOMETRIES[name]
    return replace(
        whole,
        vision=replace(whole.vision, layers=vision),
        text=replace(whole.text, layers=text),
    )


TINY = replace(
    reduced("ViT-B-32", vision=2, text=2),
    name="tiny",
    vision=replace(
        GEOMETRIES["ViT-B-32"].vision, width=128, layers=2, mlp_width=256, image_size=64
    ),
    text=replace(
        GEOMETRIES["ViT-B-32"].text, width=64, layers=2, mlp_width=128, vocabulary=50,
        context=9,
    ),
    projection=32,
)  # fmt: skip


@pytest.fixture
def pictures() -> Callable[[Geometry], Tensor]:
    """Two random pictures of a model's size."""

    def make(geometry: Geometry) -> Tensor:
        size = geometry.vision.image_size
        return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))

    return make
