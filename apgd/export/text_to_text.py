"""Folders of a T5, which transformers loads."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from apgd.checkpoints import SINGLE, Weights, items, save_weights
from apgd.errors import InputError
from apgd.export.content import TOKENIZER_FILES, Content, copy_companions
from apgd.models.clip_hub import CONFIG, read_config
from apgd.models.clip_layouts import Library
from apgd.models.t5 import COPIES, EMBEDDING, LOGITS


def is_text_to_text(names: Iterable[str]) -> bool:
    """Whether names of parameters are a T5's."""
    return EMBEDDING in names


def write_text_to_text(weights: Weights, out: Path, library: Library, base: Path | None) -> Content:
    """Write the folder's files, all but the card; see `apgd.export.export`.

    The configuration is the base's, byte for byte: what it says about tied embeddings is read
    differently by versions of transformers, and must reach each of them as the base's does.
    """
    if library is not Library.TRANSFORMERS:
        raise InputError(f"a T5 is exported for transformers only, but got {library}")
    if base is None or not base.is_dir():
        raise InputError(
            f"a base folder must be given for the configuration and tokenizer of a T5, but got "
            f"{base}"
        )
    config = read_config(base / CONFIG)
    if config.get("model_type") != "t5":
        raise InputError(
            f"{base / CONFIG} must be the configuration of a T5, but its model_type is "
            f"{config.get('model_type')!r}"
        )
    state = dict(items(weights))
    _check(state, T5Config.from_dict(config), weights.label)
    save_weights(out / SINGLE, dict(sorted(state.items())), for_transformers=True)
    copy_companions(base, out, [CONFIG, "generation_config.json", *TOKENIZER_FILES])
    kind = T5ForConditionalGeneration.__name__
    return Content(
        library=library,
        kind=kind,
        loading=f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("PATH")',
        tags=("t5",),
        pipeline="text2text-generation",
        base_model=None,
        activation=None,
        parameters=sum(tensor.numel() for tensor in state.values()),
    )


def _check(state: dict[str, Tensor], config: T5Config, label: str) -> None:
    """Raise InputError unless the weights are completely those of the configuration."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for copy in COPIES:
        if copy in state and not torch.equal(state[copy], state[EMBEDDING]):
            raise InputError(f"{copy} of {label} must be a copy of {EMBEDDING}, but is another one")
    for name, shape in expected.items():
        if name in COPIES and name not in state:
            continue
        found = tuple(state[name].shape) if name in state else None
        if name == LOGITS and found is None:
            continue  # answers are then scored with the embeddings
        if found != shape:
            raise InputError(
                f"{label} must hold {name} of shape {shape}, as the base's configuration says, but "
                f"holds {found or 'nothing'}"
            )
    excess = sorted(set(state) - set(expected))
    if excess:
        raise InputError(
            f"{label} must hold nothing that the base's configuration does not have, but holds "
            f"{', '.join(excess[:6])}"
        )
