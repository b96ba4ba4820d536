"""The sizes of the CLIP models that the paper merges, and which activation they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from apgd.errors import InputError


class Activation(StrEnum):
    """What stands between the two layers of a block's MLP; the values are transformers' names."""

    QUICK_GELU = "quick_gelu"
    """x σ(1.702 x), with which OpenAI trained CLIP."""
    GELU = "gelu"
    """The exact GELU, with which later CLIPs were trained."""


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """Sizes of a vision transformer."""

    width: int
    """Length of a token's vector."""
    layers: int
    """Blocks."""
    mlp_width: int
    """Length of the vector between the two layers of a block's MLP."""
    patch: int
    """Side of a patch in pixels."""
    image_size: int
    """Side of a picture in pixels."""

    @property
    def positions(self) -> int:
        """Tokens of a picture: one for each patch, and the class token."""
        return (self.image_size // self.patch) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Sizes of a text transformer."""

    width: int
    """Length of a token's vector."""
    layers: int
    """Blocks."""
    mlp_width: int
    """Length of the vector between the two layers of a block's MLP."""
    vocabulary: int = 49408
    """Different tokens; the last one ends a text."""
    context: int = 77
    """Tokens of a text, at most."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A CLIP: its two towers, and what libraries and the hub call it."""

    name: str
    """Short name, for example ViT-B-32."""
    hub_id: str
    """Repository on the hub that transformers loads it from; empty where there is none."""
    open_clip_model: str
    """open_clip's name for the architecture, with its activation; empty where it has none."""
    open_clip_pretrained: str
    """open_clip's tag for the weights."""
    vision: VisionSizes
    text: TextSizes
    projection: int
    """Width of the space in which pictures and texts are compared."""
    activation: Activation
    """What both towers were trained with."""
    head_width: int = 64
    """Width of an attention head, in both towers; shapes do not tell it."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of red, green and blue in the pictures of the training, of 1."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of red, green and blue, of 1."""


def _openai(name: str, hub_id: str, vision: VisionSizes, text_width: int) -> Geometry:
    """A model that OpenAI trained: text towers differ in nothing but their width."""
    return Geometry(
        name=name,
        hub_id=f"openai/{hub_id}",
        open_clip_model=f"{name}-quickgelu",
        open_clip_pretrained="openai",
        vision=vision,
        text=TextSizes(width=text_width, layers=12, mlp_width=4 * text_width),
        projection=text_width,
        activation=Activation.QUICK_GELU,
    )


def _vision(width: int, layers: int, patch: int) -> VisionSizes:
    return VisionSizes(
        width=width,
        layers=layers,
        mlp_width=4 * width,
        patch=patch,
        image_size=224,
    )


GEOMETRIES: Mapping[str, Geometry] = MappingProxyType(
    {
        geometry.name: geometry
        for geometry in (
            _openai("ViT-B-32", "clip-vit-base-patch32", _vision(768, 12, 32), 512),
            _openai("ViT-B-16", "clip-vit-base-patch16", _vision(768, 12, 16), 512),
            _openai("ViT-L-14", "clip-vit-large-patch14", _vision(1024, 24, 14), 768),
        )
    }
)
"""The paper's models by name."""


def geometry_named(name: str) -> Geometry:
    """The geometry of a short name, a hub id or a name of open_clip.

    Raises:
        InputError: for an unknown name.
    """
    for geometry in GEOMETRIES.values():
        if name in (geometry.name, geometry.hub_id, geometry.open_clip_model):
            return geometry
    raise InputError(f"unknown CLIP model {name!r}; known are: {', '.join(GEOMETRIES)}")


def geometry_of(vision: VisionSizes) -> Geometry:
    """The one of the paper's models that has this vision tower.

    Raises:
        InputError: where there is none.
    """
    for geometry in GEOMETRIES.values():
        if geometry.vision == vision:
            return geometry
    raise InputError(
        f"a CLIP vision tower must have the sizes of one of {', '.join(GEOMETRIES)}, "
        f"but got {vision}"
    )


def check_activation(said: object, geometry: Geometry, label: str) -> None:
    """Refuse weights that are said to be used with another activation than their model's.

    A model that computes with the wrong one runs without an error and scores lower.

    Args:
        said: what a file or a configuration records; None where it records nothing.
        geometry: the model that the weights were fine-tuned from.
        label: what the message calls the weights.

    Raises:
        InputError: where the two differ.
    """
    if said is not None and said != geometry.activation.value:
        raise InputError(
            f"{label} must use {geometry.activation.value}, with which "
            f"{geometry.hub_id or geometry.name} was trained, but is said to use {said}"
        )
