"""open_clip's CLIP at toy size, and the class vectors of its zero-shot head."""

from collections.abc import Callable

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from torch import Tensor, nn

from apgd.data.tasks import Task
from apgd.errors import InputError
from apgd.flops import vit_flops
from apgd.models.class_token import open_clip_embeddings
from apgd.models.clip_geometry import Activation, Geometry, TextSizes, VisionSizes

IMAGE_SIZE = 32
CONTEXT_LENGTH = 10
EMBED_DIM = 64
_HEAD_WIDTH = 32
_LAYERS = 4
_VISION = CLIPVisionCfg(
    image_size=IMAGE_SIZE, patch_size=8, width=128, layers=_LAYERS, head_width=_HEAD_WIDTH,
    mlp_ratio=4.0,
)  # fmt: skip
# Grey levels at the middle of the scale become 0, and most of them lie within two units of it.
_MEAN, _STD = 0.5, 0.25
_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


def mini_clip(vocab_size: int) -> CLIP:
    """A CLIP for pictures of 32 x 32 pixels, with random weights.

    The image tower is a ViT with patches of 8 pixels, 4 blocks of width 128 and 4 heads; the text
    tower has one block of width 64 and reads 10 words. Both towers use the exact GELU.

    Args:
        vocab_size: Highest token number plus one; that token ends a text.
    """
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=vocab_size, width=64, heads=2, layers=1
    )
    return CLIP(embed_dim=EMBED_DIM, vision_cfg=_VISION, text_cfg=text, quick_gelu=False)


def mini_geometry(vocab_size: int) -> Geometry:
    """The sizes of `mini_clip`."""
    return Geometry(
        name="mini",
        hub_id="",
        open_clip_model="",
        open_clip_pretrained="",
        vision=VisionSizes(width=128, layers=4, mlp_width=512, patch=8, image_size=IMAGE_SIZE),
        text=TextSizes(
            width=64, layers=1, mlp_width=256, vocabulary=vocab_size, context=CONTEXT_LENGTH
        ),
        projection=EMBED_DIM,
        activation=Activation.GELU,
        head_width=_HEAD_WIDTH,
        mean=(_MEAN, _MEAN, _MEAN),
        std=(_STD, _STD, _STD),
    )


def preprocess(images: np.ndarray) -> Tensor:
    """Pictures as the model takes them: uint8 (n, 32, 32, 3) -> float32 (n, 3, 32, 32).

    Raises:
        InputError: for another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != _SHAPE:
        raise InputError(
            f"images must be uint8 of shape (n, 32, 32, 3), but got {images.dtype} {images.shape}"
        )
    # A copy in the model's order of axes: a memory map is read-only, which torch warns about.
    planes = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
    return planes.to(torch.float32).div_(255.0).sub_(_MEAN).div_(_STD)


def encode(model: nn.Module, pixels: Tensor) -> Tensor:
    """Unit embeddings of preprocessed pictures by open_clip's CLIP: (n, 3, h, w) -> (n, width)."""
    seen: Tensor = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
    return seen


def encode_class_token(model: nn.Module, pixels: Tensor) -> Tensor:
    """As `encode` up to rounding, without what embeddings do not depend on."""
    embedded = open_clip_embeddings(model, pixels)
    if embedded is None:
        return encode(model, pixels)
    return nn.functional.normalize(embedded, dim=-1)


def mini_clip_flops() -> float:
    """Floating-point operations of one picture through the image tower."""
    return vit_flops(
        layers=_LAYERS,
        width=_VISION.width,
        mlp_width=int(_VISION.width * _VISION.mlp_ratio),
        tokens=(IMAGE_SIZE // _VISION.patch_size) ** 2 + 1,
        patch=_VISION.patch_size,
        projection=EMBED_DIM,
    )


def class_vectors(model: nn.Module, tokenizer: Callable[[list[str]], Tensor], task: Task) -> Tensor:
    """The weights of a task's zero-shot classifier, made of its class names.

    Args:
        model: A CLIP of open_clip.
        tokenizer: Texts to token numbers.
        task: Gives class names and prompt templates.

    Returns:
        float32 (classes, width): for each class the mean text embedding over the templates, made a
        unit vector and multiplied by the logit scale.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    columns = build_zero_shot_classifier(
        model, tokenizer, list(task.class_names), list(task.templates), device=device
    )  # (width, classes)
    model.train(training)
    scale = model.get_parameter("logit_scale").detach().exp()
    vectors: Tensor = (columns.detach().T * scale).contiguous()
    return vectors
