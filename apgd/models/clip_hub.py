"""CLIP at the paper's sizes: its towers in both libraries, zero-shot heads, files of weights.

Models are built from sizes alone and nothing is downloaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from apgd.checkpoints import INDEX, SINGLE, load_weights, read_metadata
from apgd.data.tasks import Task
from apgd.errors import InputError
from apgd.models.clip_geometry import Activation, Geometry, check_activation
from apgd.models.clip_layouts import (
    PROJECTION,
    TEXT,
    Library,
    canonical_shapes,
    layout_of,
    library_layout,
    text_to_canonical,
    to_canonical,
)
from apgd.sandbox import load_pickled

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG = "config.json"
PICKLED = "pytorch_model.bin"
"""What transformers called a model's weights before safetensors; some of the hub's still are."""

_TEXTS_AT_ONCE = 256
_OPEN_CLIP_SPECIALS = {
    "<start_of_text>": "<|startoftext|>",
    "<end_of_text>": "<|endoftext|>",
}


def vision_config(geometry: Geometry) -> CLIPVisionConfig:
    """The configuration of the vision tower in transformers."""
    return CLIPVisionConfig(
        hidden_size=geometry.vision.width,
        intermediate_size=geometry.vision.mlp_width,
        num_hidden_layers=geometry.vision.layers,
        num_attention_heads=geometry.vision.width // geometry.head_width,
        image_size=geometry.vision.image_size,
        patch_size=geometry.vision.patch,
        projection_dim=geometry.projection,
        hidden_act=geometry.activation.value,
    )


def clip_config(geometry: Geometry) -> CLIPConfig:
    """The configuration of the whole model in transformers."""
    text = geometry.text
    last = text.vocabulary - 1
    return CLIPConfig(
        vision_config=vision_config(geometry).to_dict(),
        text_config=CLIPTextConfig(
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            intermediate_size=text.mlp_width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.width // geometry.head_width,
            max_position_embeddings=text.context,
            projection_dim=geometry.projection,
            hidden_act=geometry.activation.value,
            bos_token_id=last - 1,
            eos_token_id=last,
            pad_token_id=last,
        ).to_dict(),
        projection_dim=geometry.projection,
    )


def open_clip_config(geometry: Geometry) -> dict[str, Any]:
    """open_clip's configuration of the whole model, as its files of configurations hold it."""
    vision, text = geometry.vision, geometry.text
    return {
        "embed_dim": geometry.projection,
        "quick_gelu": geometry.activation is Activation.QUICK_GELU,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": geometry.head_width,
            "mlp_ratio": vision.mlp_width / vision.width,
            "patch_size": vision.patch,
        },
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": text.vocabulary,
            "width": text.width,
            "heads": text.width // geometry.head_width,
            "layers": text.layers,
            "mlp_ratio": text.mlp_width / text.width,
        },
    }


def vision_encoder(geometry: Geometry) -> CLIPVisionModelWithProjection:
    """A vision tower with random weights, whose state dict has the canonical names.

    Its output `image_embeds` for float32 (n, 3, size, size) is float32 (n, projection).
    """
    return CLIPVisionModelWithProjection(vision_config(geometry))


def transformers_clip(geometry: Geometry) -> CLIPModel:
    """The whole model of transformers, with random weights."""
    return CLIPModel(clip_config(geometry))


def open_clip_clip(geometry: Geometry) -> CLIP:
    """The whole model of open_clip, with random weights."""
    config = open_clip_config(geometry)
    return CLIP(
        embed_dim=config["embed_dim"],
        quick_gelu=config["quick_gelu"],
        vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=CLIPTextCfg(**config["text_cfg"]),
    )


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer of transformers, with the vocabulary that the package open_clip brings."""
    source = SimpleTokenizer()
    vocabulary = {_OPEN_CLIP_SPECIALS.get(t, t): number for t, number in source.encoder.items()}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(source.bpe_ranks), model_max_length=source.context_length
    )


def transformers_zero_shot_head(model: CLIPModel, tokenizer: CLIPTokenizer, task: Task) -> Tensor:
    """A task's classifier made of its class names, by the text tower of transformers' CLIP.

    The same numbers as `apgd.models.clip.zero_shot_head` computes with open_clip.

    Args:
        model: A CLIP of transformers.
        tokenizer: Its tokenizer.
        task: Gives class names and prompt templates.

    Returns:
        float32 (classes, width): for each class the mean of the texts' unit vectors over the
        templates, made a unit vector and multiplied by the logit scale.
    """
    device = model.logit_scale.device
    positions = model.text_model.embeddings.position_embedding.num_embeddings
    texts = [template.format(name) for name in task.class_names for template in task.templates]
    training = model.training
    model.train(False)
    embedded = []
    with torch.no_grad():
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = tokenizer(
                texts[start : start + _TEXTS_AT_ONCE],
                padding=True,
                truncation=True,
                max_length=positions,
                return_tensors="pt",
            ).to(device)
            features = model.get_text_features(**tokens).pooler_output  # (texts, width)
            embedded.append(torch.nn.functional.normalize(features.float(), dim=-1))
        units = torch.cat(embedded).view(len(task.class_names), len(task.templates), -1)
        mean = torch.nn.functional.normalize(units.mean(dim=1), dim=-1)  # (classes, width)
        scale = model.logit_scale.float().exp()
    model.train(training)
    return (mean * scale).contiguous()


def read_vision_tower(
    source: Path, geometry: Geometry, label: str, *, projection: Tensor | None = None
) -> dict[str, Tensor]:
    """A vision tower from files in any known layout, in canonical names and float32.

    Args:
        source: see `read_checkpoint`.
        geometry: what the tower must be.
        label: what messages call it, for example "expert mnist".
        projection: float32 (projection, width), taken where the files hold none, as those of a
            CLIPVisionModel do; fine-tuning leaves the base's projection as it was.

    Raises:
        InputError: where the files are damaged, hold another model or not all of it, or are said to
            need another activation.
    """
    state = _read(source, geometry, label)
    canonical = to_canonical(state)
    if PROJECTION not in canonical:
        if projection is None:
            raise InputError(
                f"{label} must hold {PROJECTION}, or be given the base's, but {source} has none"
            )
        canonical[PROJECTION] = projection
    if tuple(canonical[PROJECTION].shape) != (geometry.projection, geometry.vision.width):
        raise InputError(
            f"{PROJECTION} of {label} must have the shape "
            f"{geometry.projection, geometry.vision.width}, "
            f"but has {tuple(canonical[PROJECTION].shape)}"
        )
    return canonical


def read_text_tower(source: Path, geometry: Geometry, label: str) -> dict[str, Tensor]:
    """A text tower and the logit scale from files in any known layout; see `read_vision_tower`.

    Raises:
        InputError: as `read_vision_tower`, and where the files hold no whole text tower.
    """
    state = _read(source, geometry, label)
    text = text_to_canonical(state)
    expected = text_shapes(geometry)
    for name, shape in expected.items():
        if name not in text or tuple(text[name].shape) != shape:
            raise InputError(
                f"the text tower of {label} must be that of {geometry.name}, {geometry.text}, "
                f"where {name} has the shape {shape}"
            )
    return text


def recorded_activation(source: Path) -> str | None:
    """The activation that files of weights record, by transformers' names; None where none is.

    Looked at are the metadata that `apgd` writes, `config.json` of transformers, and
    `open_clip_config.json`.

    Raises:
        InputError: for a damaged file.
    """
    weights = weights_file(source)
    if weights.suffix == ".safetensors":
        recorded = read_metadata(weights).get("activation")
        if recorded is not None:
            return str(recorded)
    if not source.is_dir():
        return None
    if (source / OPEN_CLIP_CONFIG).exists():
        config = read_config(source / OPEN_CLIP_CONFIG)
        model = _section(config, "model_cfg")
        return (Activation.QUICK_GELU if model.get("quick_gelu") else Activation.GELU).value
    if (source / CONFIG).exists():
        config = read_config(source / CONFIG)
        tower = _section(config, "vision_config") if "vision_config" in config else config
        return str(tower.get("hidden_act", Activation.QUICK_GELU.value))
    return None


def weights_file(source: Path) -> Path:
    """The file or folder that `apgd.checkpoints` opens, of a folder as either library writes it."""
    for name in (OPEN_CLIP_WEIGHTS, SINGLE):
        if (source / name).exists():
            return source / name
    only_pickled = (source / PICKLED).exists() and not (source / INDEX).exists()
    return source / PICKLED if only_pickled else source


def read_checkpoint(source: Path, label: str) -> tuple[dict[str, Tensor], str | None]:
    """What files of weights hold, as it is stored, and the activation that they record.

    Args:
        source: a safetensors file; a folder as transformers or open_clip writes it; a file of
            PyTorch, of which nothing is run.
        label: what messages call it.

    Raises:
        InputError: where they are damaged.
    """
    file = weights_file(source)
    if file.is_file() and file.suffix not in (".safetensors", ".json"):
        state, told = load_pickled(file)
        return state, recorded_activation(source) or told
    return load_weights(file, label), recorded_activation(source)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: where there is no file, or it holds something else.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} must hold a JSON object, but could not be read: {error}"
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, but holds a {type(config).__name__}")
    return config


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise InputError(f"a configuration must hold the object {name}, but holds {section!r}")
    return section


def text_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of a text tower."""
    layout = library_layout(Library.TRANSFORMERS, geometry, text=True)
    return {n: shape for n, shape in canonical_shapes(layout).items() if n.startswith(TEXT)}


def _read(source: Path, geometry: Geometry, label: str) -> dict[str, Tensor]:
    """The stored tensors, where they are those of this model and its activation."""
    state, activation = read_checkpoint(source, label)
    check_activation(activation, geometry, f"{label} ({source})")
    vision = layout_of(state).vision
    if vision != geometry.vision:
        raise InputError(
            f"the vision tower of {label} must be that of {geometry.name}, {geometry.vision}, "
            f"but is {vision}"
        )
    return state
