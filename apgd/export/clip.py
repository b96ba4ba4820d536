"""Folders of a CLIP: CLIPModel or CLIPVisionModelWithProjection, or a model of open_clip."""

from pathlib import Path

from torch import Tensor
from transformers import CLIPImageProcessor

from apgd.checkpoints import SINGLE, Weights, items, save_weights
from apgd.errors import InputError
from apgd.export.content import TOKENIZER_FILES, Content, copy_companions
from apgd.files import write_json
from apgd.models.clip import mini_geometry
from apgd.models.clip_geometry import Geometry, check_activation, geometry_of
from apgd.models.clip_hub import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    clip_config,
    clip_tokenizer,
    open_clip_config,
    read_text_tower,
    read_vision_tower,
    vision_config,
)
from apgd.models.clip_layouts import (
    PROJECTION,
    TEXT,
    Layout,
    Library,
    from_canonical,
    layout_of,
    library_layout,
    whole_to_canonical,
)

_PROCESSOR = "preprocessor_config.json"
_CLIP_VOCABULARY = 49408
_OPENAI_TAGS = ("clip",)


def write_clip(
    weights: Weights,
    said: str | None,
    out: Path,
    library: Library,
    base: Path | None,
    geometry: Geometry | None,
) -> Content:
    """Write the folder's files, all but the card; see `apgd.export.export`.

    Args:
        weights: the merged model.
        said: the activation that is recorded with it.
        out: an empty folder.
        library: who is going to load it.
        base: where the text tower comes from.
        geometry: which CLIP it is.
    """
    stored = dict(items(weights))
    layout = layout_of(stored)
    known = geometry or _geometry(layout)
    check_activation(said, known, weights.label)
    state = _completed(whole_to_canonical(stored), known, base, library, weights.label)
    whole = any(name.startswith(TEXT) for name in state)
    made = from_canonical(state, library_layout(library, known, text=whole))
    file = SINGLE if library is Library.TRANSFORMERS else OPEN_CLIP_WEIGHTS
    recorded = {"activation": known.activation.value, "model": known.name}
    save_weights(out / file, made, recorded, for_transformers=True)
    if library is Library.OPEN_CLIP:
        return _for_open_clip(out, known, made)
    return _for_transformers(out, known, made, base, whole)


def _geometry(layout: Layout) -> Geometry:
    """The paper's model of these sizes, or the embedded suite's."""
    if layout.text is not None:
        mini = mini_geometry(layout.text.vocabulary)
        if (layout.vision, layout.text) == (mini.vision, mini.text):
            return mini
    return geometry_of(layout.vision)


def _completed(
    state: dict[str, Tensor], geometry: Geometry, base: Path | None, library: Library, label: str
) -> dict[str, Tensor]:
    """Canonical weights with what the merged ones lack taken from the base."""
    if PROJECTION not in state:
        if base is None:
            raise InputError(f"{label} has no {PROJECTION}, so a base must be given that holds it")
        state[PROJECTION] = read_vision_tower(base, geometry, "the base")[PROJECTION]
    if any(name.startswith(TEXT) for name in state):
        return state
    if base is None:
        if library is Library.OPEN_CLIP:
            raise InputError(
                f"open_clip loads whole models only, and {label} is a vision tower, so a base must "
                f"be given for the text tower"
            )
        return state
    return state | read_text_tower(base, geometry, "the base")


def _for_open_clip(out: Path, geometry: Geometry, made: dict[str, Tensor]) -> Content:
    processing = {
        "mean": list(geometry.mean),
        "std": list(geometry.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    write_json(
        out / OPEN_CLIP_CONFIG,
        {"model_cfg": open_clip_config(geometry), "preprocess_cfg": processing},
    )
    return Content(
        library=Library.OPEN_CLIP,
        kind=geometry.open_clip_model or f"CLIP ({geometry.name})",
        loading="import open_clip\n\nmodel, _, preprocess = "
        'open_clip.create_model_and_transforms("local-dir:PATH")',
        tags=(*_OPENAI_TAGS, "zero-shot-image-classification"),
        pipeline="zero-shot-image-classification",
        base_model=geometry.hub_id or None,
        activation=geometry.activation.value,
        parameters=_count(made),
        notes=_notes(geometry),
    )


def _for_transformers(
    out: Path, geometry: Geometry, made: dict[str, Tensor], base: Path | None, whole: bool
) -> Content:
    kind = "CLIPModel" if whole else "CLIPVisionModelWithProjection"
    config = clip_config(geometry) if whole else vision_config(geometry)
    config.architectures = [kind]
    config.save_pretrained(out)
    if not copy_companions(base, out, [_PROCESSOR]):
        side = geometry.vision.image_size
        CLIPImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(geometry.mean),
            image_std=list(geometry.std),
        ).save_pretrained(out)
    own = geometry.text.vocabulary == _CLIP_VOCABULARY
    if whole and not copy_companions(base, out, TOKENIZER_FILES) and own:
        clip_tokenizer().save_pretrained(out)
    return Content(
        library=Library.TRANSFORMERS,
        kind=kind,
        loading=f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("PATH")',
        tags=_OPENAI_TAGS,
        pipeline="zero-shot-image-classification" if whole else "image-feature-extraction",
        base_model=geometry.hub_id or None,
        activation=geometry.activation.value,
        parameters=_count(made),
        notes=_notes(geometry),
    )


def _count(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _notes(geometry: Geometry) -> tuple[str, ...]:
    if geometry.text.vocabulary == _CLIP_VOCABULARY:
        return ()
    return (
        f"Its text tower reads {geometry.text.vocabulary} words of its own; CLIP's tokenizer does "
        f"not fit it.",
    )
