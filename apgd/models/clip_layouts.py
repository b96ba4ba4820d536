"""CLIP's parameters under the names of other libraries and versions.

The canonical layout is the one of transformers 5: `vision_model.…` and `visual_projection.weight`
for the vision tower, as in CLIPVisionModelWithProjection, and `text_model.…`,
`text_projection.weight` and `logit_scale` for the text tower, as in CLIPModel. Queries, keys and
values are matrices of their own in it, as they are merged.

Known besides it: CLIPVisionModel of transformers 5 (no `vision_model.`) and of older versions, and
open_clip (queries, keys and values in one matrix, projections transposed), the whole model or its
`visual` alone, below prefixes that wrappers add. Nothing is matched loosely: weights that lack a
parameter, or hold one too many, are refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from apgd.errors import InputError
from apgd.models.clip_geometry import Geometry, TextSizes, VisionSizes

Shape = tuple[int, ...]

VISION = "vision_model."
PROJECTION = "visual_projection.weight"
TEXT = ("text_model.", "text_projection.weight", "logit_scale")

_WRAPPERS = ("module.", "state_dict.", "image_encoder.", "model.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 6


class Library(StrEnum):
    """Whose names the parameters have; the values are the hub's names of libraries."""

    TRANSFORMERS = "transformers"
    OPEN_CLIP = "open_clip"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How weights name and arrange a CLIP's parameters, and the sizes that their shapes tell."""

    library: Library
    wrapper: str = ""
    """Prefix of every name, for example `module.`; it is no part of either library's names."""
    tower: str
    """Prefix of the vision tower's names: `vision_model.` or `visual.`, or nothing."""
    vision: VisionSizes
    projection: int | None
    """Width of the common space; None where the projection is not held."""
    text: TextSizes | None = None
    """None where the text tower is not held, or not whole; never without the projection."""
    dropped: tuple[str, ...] = ()
    """Names, without the wrapper, that hold nothing of the canonical layout."""

    def __str__(self) -> str:
        """In words, for messages and metadata."""
        parts = "vision and text" if self.text else "vision"
        without = "" if self.projection else " without projection"
        return f"{self.library}, {parts}{without}, names like {self.wrapper}{self.tower}…"


@dataclass(frozen=True)
class _Row:
    """One stored tensor, and the canonical ones that it stands for."""

    name: str
    targets: tuple[str, ...]
    """More than one where they are stacked along the first axis."""
    transposed: bool = False

    def shape(self, canonical: Mapping[str, Shape]) -> Shape:
        """The stored shape."""
        shape = canonical[self.targets[0]]
        if len(self.targets) > 1:
            shape = (shape[0] * len(self.targets), *shape[1:])
        return shape[::-1] if self.transposed else shape


def recognise(shapes: Mapping[str, Shape]) -> Layout:
    """The layout of weights, from their names and shapes alone.

    Raises:
        InputError: where they are not completely those of a known layout; the message lists what is
            missing, what is too much, and which shapes are wrong.
    """
    wrapper = _wrapper(shapes)
    inner = {name.removeprefix(wrapper): tuple(shape) for name, shape in shapes.items()}
    library, tower = _library(inner)
    layout = _measure(inner, library, tower, wrapper)
    canonical = canonical_shapes(layout)
    expected = {row.name: row.shape(canonical) for row in _rows(layout)}
    missing = [name for name in expected if name not in inner]
    excess = [name for name in inner if name not in expected and name not in layout.dropped]
    if missing or excess:
        raise InputError(
            f"weights must be completely those of a CLIP ({layout}), but "
            + " and ".join(
                f"{what}: {_some(names)}"
                for what, names in (("these are missing", missing), ("these are too much", excess))
                if names
            )
        )
    for name, shape in expected.items():
        if inner[name] != shape:
            raise InputError(f"{wrapper}{name} must have the shape {shape}, but has {inner[name]}")
    return layout


def library_layout(
    library: Library, geometry: Geometry, *, projection: bool = True, text: bool = False
) -> Layout:
    """The layout in which a library's current version saves a model.

    Args:
        library: the library.
        geometry: the model's sizes.
        projection: whether the projection of pictures is held; open_clip always holds it.
        text: whether the text tower is held: CLIPModel of transformers, CLIP of open_clip.

    Raises:
        InputError: for parts that the library has no class for.
    """
    ours = library is Library.TRANSFORMERS
    if not projection and (text or not ours):
        raise InputError("only a CLIPVisionModel of transformers has no projection")
    bare = "" if ours else "visual."
    return Layout(
        library=library,
        tower=VISION if ours and projection else bare,
        vision=geometry.vision,
        projection=geometry.projection if projection else None,
        text=geometry.text if text else None,
    )


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """`recognise` for tensors."""
    return recognise({name: tuple(tensor.shape) for name, tensor in state.items()})


def canonical_shapes(layout: Layout) -> dict[str, Shape]:
    """Names and shapes of the canonical layout, for the parts that `layout` holds."""
    vision, text = layout.vision, layout.text
    embeddings = f"{VISION}embeddings."
    shapes: dict[str, Shape] = {
        f"{embeddings}class_embedding": (vision.width,),
        f"{embeddings}patch_embedding.weight": (vision.width, 3, vision.patch, vision.patch),
        f"{embeddings}position_embedding.weight": (vision.positions, vision.width),
        **_norm_shapes(f"{VISION}pre_layrnorm", vision.width),
        **_block_shapes(VISION, vision),
        **_norm_shapes(f"{VISION}post_layernorm", vision.width),
    }
    projection = layout.projection
    if projection is None:
        return shapes
    shapes[PROJECTION] = (projection, vision.width)
    if text is not None:
        shapes |= {
            "text_model.embeddings.token_embedding.weight": (text.vocabulary, text.width),
            "text_model.embeddings.position_embedding.weight": (text.context, text.width),
            **_block_shapes("text_model.", text),
            **_norm_shapes("text_model.final_layer_norm", text.width),
            "text_projection.weight": (projection, text.width),
            "logit_scale": (),
        }
    return shapes


def to_canonical(
    state: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float32
) -> dict[str, Tensor]:
    """The vision tower in canonical names, whatever known layout it comes in.

    Args:
        state: a state dict in a known layout; it is not changed.
        dtype: the type of the result; None keeps the stored one.

    Returns:
        `vision_model.…`, and `visual_projection.weight` where `state` holds a projection (weights
        of a CLIPVisionModel do not). Tensors that need no change share memory with `state`.

    Raises:
        InputError: where `state` is not completely a known layout, or not of floating-point type.
    """
    return {n: t for n, t in whole_to_canonical(state, dtype).items() if not n.startswith(TEXT)}


def whole_to_canonical(
    state: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float32
) -> dict[str, Tensor]:
    """Everything that `state` holds in canonical names; see `to_canonical`.

    The text tower is part of the result where `state` holds all of it.
    """
    layout = layout_of(state)
    canonical: dict[str, Tensor] = {}
    for row in _rows(layout):
        tensor = state[f"{layout.wrapper}{row.name}"]
        if tensor.dtype not in _FLOATS:
            raise InputError(
                f"{layout.wrapper}{row.name} must be of type float32, float16 or bfloat16, "
                f"but is {tensor.dtype}"
            )
        tensor = tensor.detach() if dtype is None else tensor.detach().to(dtype)
        if row.transposed:
            tensor = tensor.T
        parts = tensor.chunk(len(row.targets)) if len(row.targets) > 1 else (tensor,)
        canonical |= {
            name: part.contiguous() for name, part in zip(row.targets, parts, strict=True)
        }
    return dict(sorted(canonical.items()))


def text_to_canonical(
    state: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float32
) -> dict[str, Tensor]:
    """The text tower, its projection and the logit scale in canonical names; see `to_canonical`.

    Raises:
        InputError: where `state` does not hold a whole text tower.
    """
    whole = whole_to_canonical(state, dtype)
    text = {name: tensor for name, tensor in whole.items() if name.startswith(TEXT)}
    if not text:
        raise InputError(f"weights must hold a whole text tower, but these are {layout_of(state)}")
    return text


def from_canonical(
    state: Mapping[str, Tensor], layout: Layout, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Weights of the canonical layout in another one: the inverse of `to_canonical`.

    Args:
        state: canonical names, with exactly the parts that `layout` holds.
        layout: the layout to make; what it drops is not made.
        dtype: the type of the result; None keeps the one of `state`.

    Raises:
        InputError: where `state` lacks a part, holds one too many, or one of another shape.
    """
    shapes = canonical_shapes(layout)
    missing = [name for name in shapes if name not in state]
    excess = [name for name in state if name not in shapes]
    if missing or excess:
        raise InputError(
            f"weights for the layout {layout} must be complete in canonical names, but "
            f"{len(missing)} are missing ({_some(missing)}) and {len(excess)} are too much "
            f"({_some(excess)})"
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise InputError(
                f"{name} must have the shape {shape}, but has {tuple(state[name].shape)}"
            )
    made = {}
    for row in _rows(layout):
        parts = [state[name].detach() for name in row.targets]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        tensor = tensor.T if row.transposed else tensor
        made[f"{layout.wrapper}{row.name}"] = (
            tensor if dtype is None else tensor.to(dtype)
        ).contiguous()
    return made


def _wrapper(names: Mapping[str, Shape]) -> str:
    """The longest prefix made of known wrappers that all names have."""
    if not names:
        raise InputError("weights must hold parameters, but these hold none")
    wrapper = ""
    while True:
        rest = [name[len(wrapper) :] for name in names]
        found = [w for w in _WRAPPERS if all(name.startswith(w) for name in rest)]
        if not found:
            return wrapper
        wrapper += found[0]


def _library(names: Mapping[str, Shape]) -> tuple[Library, str]:
    """Whose names these are, and the prefix of the vision tower."""
    signs = (
        (Library.TRANSFORMERS, "embeddings.patch_embedding.weight", ("vision_model.", "")),
        (Library.OPEN_CLIP, "conv1.weight", ("visual.", "")),
    )
    for library, sign, towers in signs:
        for tower in towers:
            if f"{tower}{sign}" in names:
                return library, tower
    raise InputError(
        "weights must be those of a CLIP with a vision transformer, as transformers or open_clip "
        f"name them, but neither patch_embedding nor conv1 is among: {_some(list(names))}"
    )


def _measure(names: Mapping[str, Shape], library: Library, tower: str, wrapper: str) -> Layout:
    """A layout with the sizes of those tensors that tell them; the others are not looked at."""
    ours = library is Library.TRANSFORMERS
    patches = _shape(names, f"{tower}{'embeddings.patch_embedding' if ours else 'conv1'}.weight", 4)
    positions = _shape(
        names,
        f"{tower}{'embeddings.position_embedding.weight' if ours else 'positional_embedding'}",
        2,
    )
    blocks = f"{tower}{'encoder.layers' if ours else 'transformer.resblocks'}."
    grid = math.isqrt(max(positions[0] - 1, 0))
    if grid * grid + 1 != positions[0]:
        raise InputError(
            f"a vision tower must have one position for each patch of a square picture and one "
            f"more, but has {positions[0]}"
        )
    vision = VisionSizes(
        width=patches[0],
        patch=patches[2],
        image_size=grid * patches[2],
        **_block_sizes(names, blocks, ours),
    )
    projected = PROJECTION if ours else f"{tower}proj"
    projection = None
    if projected in names:
        projection = _shape(names, projected, 2)[0 if ours else 1]
    elif not ours:
        raise InputError(f"weights of open_clip must hold {projected}, but it is missing")
    text = None
    tokens = "text_model.embeddings.token_embedding.weight" if ours else "token_embedding.weight"
    text_positions = (
        "text_model.embeddings.position_embedding.weight" if ours else "positional_embedding"
    )
    text_blocks = "text_model.encoder.layers." if ours else "transformer.resblocks."
    if tower and any(name.startswith(text_blocks) for name in names):
        vocabulary, width = _shape(names, tokens, 2)
        text = TextSizes(
            width=width,
            vocabulary=vocabulary,
            context=_shape(names, text_positions, 2)[0],
            **_block_sizes(names, text_blocks, ours),
        )
        if projection is None:
            raise InputError(f"weights with a text tower must hold {projected}, but it is missing")
    return Layout(
        library=library,
        wrapper=wrapper,
        tower=tower,
        vision=vision,
        projection=projection,
        text=text,
        dropped=tuple(name for name in names if name in _dropped(library, tower, text is None)),
    )


def _dropped(library: Library, tower: str, without_text: bool) -> tuple[str, ...]:
    """Names that may be held beside the parameters and say nothing."""
    if library is Library.TRANSFORMERS:
        # Buffers that count upwards; transformers saved them before version 4.31.
        return (f"{tower}embeddings.position_ids", "text_model.embeddings.position_ids")
    if not tower:
        return ()
    # OpenAI's own files hold three numbers, and versions of open_clip the causal mask.
    numbers = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    if not without_text:
        return numbers
    # Whoever fine-tunes only pictures deletes the text tower's blocks, and these stay behind.
    rest = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight",
            "ln_final.weight", "ln_final.bias")  # fmt: skip
    return (*numbers, *rest)


def _shape(names: Mapping[str, Shape], name: str, axes: int) -> Shape:
    if name not in names:
        raise InputError(f"weights of a CLIP must hold {name}, but it is missing")
    if len(names[name]) != axes or 0 in names[name]:
        raise InputError(
            f"{name} must have {axes} axes, none of them empty, but has the shape {names[name]}"
        )
    return names[name]


def _block_sizes(names: Mapping[str, Shape], blocks: str, ours: bool) -> dict[str, int]:
    """`layers` and `mlp_width`, from the blocks below a prefix."""
    pattern = re.compile(re.escape(blocks) + r"(\d+)\.")
    numbers = {int(m.group(1)) for m in map(pattern.match, names) if m}
    layers = max(numbers, default=-1) + 1
    if layers > len(names):
        raise InputError(f"blocks must be numbered without gaps, but there is {blocks}{layers - 1}")
    first = f"{blocks}0.mlp.{'fc1' if ours else 'c_fc'}.weight"
    return {"layers": layers, "mlp_width": _shape(names, first, 2)[0]}


def _norm_shapes(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block_shapes(tower: str, sizes: VisionSizes | TextSizes) -> dict[str, Shape]:
    """The canonical names and shapes of a tower's blocks."""
    width, mlp_width = sizes.width, sizes.mlp_width
    shapes: dict[str, Shape] = {}
    for layer in range(sizes.layers):
        block = f"{tower}encoder.layers.{layer}."
        for part in ("k", "out", "q", "v"):
            shapes[f"{block}self_attn.{part}_proj.weight"] = (width, width)
            shapes[f"{block}self_attn.{part}_proj.bias"] = (width,)
        shapes[f"{block}mlp.fc1.weight"] = (mlp_width, width)
        shapes[f"{block}mlp.fc1.bias"] = (mlp_width,)
        shapes[f"{block}mlp.fc2.weight"] = (width, mlp_width)
        shapes[f"{block}mlp.fc2.bias"] = (width,)
        shapes |= _norm_shapes(f"{block}layer_norm1", width)
        shapes |= _norm_shapes(f"{block}layer_norm2", width)
    return shapes


def _rows(layout: Layout) -> Iterator[_Row]:
    """Every stored tensor of a layout, with the canonical ones that it stands for."""
    if layout.library is Library.TRANSFORMERS:
        for name in canonical_shapes(layout):
            stored = name.replace(VISION, layout.tower, 1) if name.startswith(VISION) else name
            yield _Row(stored, (name,))
        return
    tower = layout.tower
    yield _Row(f"{tower}class_embedding", (f"{VISION}embeddings.class_embedding",))
    yield _Row(f"{tower}positional_embedding", (f"{VISION}embeddings.position_embedding.weight",))
    yield _Row(f"{tower}conv1.weight", (f"{VISION}embeddings.patch_embedding.weight",))
    yield from _pair(f"{tower}ln_pre", f"{VISION}pre_layrnorm")
    yield from _block_rows(tower, VISION, layout.vision.layers)
    yield from _pair(f"{tower}ln_post", f"{VISION}post_layernorm")
    yield _Row(f"{tower}proj", (PROJECTION,), transposed=True)
    if layout.text is not None:
        embeddings = "text_model.embeddings."
        yield _Row("token_embedding.weight", (f"{embeddings}token_embedding.weight",))
        yield _Row("positional_embedding", (f"{embeddings}position_embedding.weight",))
        yield from _block_rows("", "text_model.", layout.text.layers)
        yield from _pair("ln_final", "text_model.final_layer_norm")
        yield _Row("text_projection", ("text_projection.weight",), transposed=True)
        yield _Row("logit_scale", ("logit_scale",))


def _block_rows(tower: str, canonical: str, layers: int) -> Iterator[_Row]:
    """open_clip's names in the blocks of a tower."""
    for layer in range(layers):
        stored = f"{tower}transformer.resblocks.{layer}."
        block = f"{canonical}encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            targets = tuple(f"{block}self_attn.{part}_proj.{kind}" for part in "qkv")
            yield _Row(f"{stored}attn.in_proj_{kind}", targets)
        yield from _pair(f"{stored}attn.out_proj", f"{block}self_attn.out_proj")
        yield from _pair(f"{stored}ln_1", f"{block}layer_norm1")
        yield from _pair(f"{stored}ln_2", f"{block}layer_norm2")
        yield from _pair(f"{stored}mlp.c_fc", f"{block}mlp.fc1")
        yield from _pair(f"{stored}mlp.c_proj", f"{block}mlp.fc2")


def _pair(stored: str, canonical: str) -> Iterator[_Row]:
    """A layer's weight and bias."""
    for kind in ("weight", "bias"):
        yield _Row(f"{stored}.{kind}", (f"{canonical}.{kind}",))


def _some(names: list[str]) -> str:
    """Names for a message: all, or the first few and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
