"""Checkpoints of other projects, converted once to safetensors in CLIP's canonical layout."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from apgd.checkpoints import save_weights
from apgd.errors import InputError
from apgd.files import sha256_file
from apgd.models.clip_geometry import Geometry, check_activation, geometry_of
from apgd.models.clip_hub import read_checkpoint, read_vision_tower, weights_file
from apgd.models.clip_layouts import (
    PROJECTION,
    TEXT,
    Layout,
    Library,
    canonical_shapes,
    layout_of,
    library_layout,
    whole_to_canonical,
)
from apgd.published import Family


class Part(StrEnum):
    """What of a checkpoint is kept."""

    VISION = "vision"
    """The vision tower and its projection: what is fine-tuned and merged."""
    WHOLE = "whole"
    """Both towers, their projections and the logit scale: what zero-shot heads are made with."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What became of a checkpoint."""

    geometry: Geometry
    """The model that it is."""
    layout: Layout
    """The layout in which it came."""
    sha256: str
    """Hash of the file that it was."""
    parameters: int
    """How many numbers were written."""


def convert(
    source: Path,
    out: Path,
    *,
    part: Part = Part.VISION,
    geometry: Geometry | None = None,
    base: Path | None = None,
    family: Family | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write a checkpoint of CLIP as safetensors in the canonical layout, as float32.

    Files of PyTorch, whole pickled modules included, are read by apgd.sandbox: nothing of them is
    run.

    Args:
        source: a safetensors file; a folder of transformers or open_clip; a file of PyTorch.
        out: the safetensors file to write. Its metadata name the source, its hash, the layout in
            which it came, the model and its activation.
        part: what to keep.
        geometry: the model that it must be; one of the paper's, told by its sizes, where None.
        base: files of the base in a known layout, whose projection is taken where `source` has
            none.
        family: whose published results belong beside this expert's; recorded in the metadata,
            where a comparison finds it.
        overwrite: replace an existing `out`.

    Raises:
        InputError: where the source is refused, is not completely a known layout, is another model,
            or is said to use another activation; or `out` exists.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"the converted file must end in .safetensors, but got {out}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; add --overwrite to replace it")
    file = weights_file(source)
    if not file.exists():
        raise InputError(f"{source} does not exist")
    if file.resolve() == out.resolve():
        raise InputError(f"the converted file must be another one than its source {source}")
    state, said = read_checkpoint(source, str(source))
    layout = layout_of(state)
    known = geometry or geometry_of(layout.vision)
    check_activation(said, known, str(source))
    canonical = whole_to_canonical(state)
    if PROJECTION not in canonical and base is not None:
        canonical[PROJECTION] = read_vision_tower(base, known, "the base")[PROJECTION]
    if part is Part.VISION:
        canonical = {n: tensor for n, tensor in canonical.items() if not n.startswith(TEXT)}
    expected = canonical_shapes(
        library_layout(Library.TRANSFORMERS, known, text=part is Part.WHOLE)
    )
    for name, shape in expected.items():
        if name not in canonical or tuple(canonical[name].shape) != shape:
            found = tuple(canonical[name].shape) if name in canonical else "nothing"
            raise InputError(
                f"{source} must hold {name} of shape {shape}, as {known.name} has it, but holds "
                f"{found}"
            )
    sha256 = sha256_file(file) if file.is_file() else ""
    save_weights(
        out,
        dict(sorted(canonical.items())),
        {
            "source": source.name,
            "source_sha256": sha256,
            "source_layout": str(layout),
            "model": known.name,
            "base_model": known.hub_id,
            "activation": known.activation.value,
            **({} if family is None else {"family": family.value}),
        },
        for_transformers=True,
    )
    return Conversion(
        geometry=known,
        layout=layout,
        sha256=sha256,
        parameters=sum(tensor.numel() for tensor in canonical.values()),
    )
