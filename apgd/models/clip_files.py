"""CLIP's base models on this machine: fetched from the hub once, kept in the canonical layout."""

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from apgd.checkpoints import save_weights
from apgd.data.cache import cache_root
from apgd.data.tasks import Task
from apgd.files import content_key, sha256_file
from apgd.hub import cached_weights, hub_weights
from apgd.locks import locked
from apgd.models.clip_geometry import Geometry
from apgd.models.clip_hub import (
    clip_tokenizer,
    read_text_tower,
    read_vision_tower,
    transformers_clip,
    transformers_zero_shot_head,
)
from apgd.source import source_hash

_CODE = (
    *("apgd.models.clip_files", "apgd.models.clip_hub", "apgd.models.clip_layouts"),
    *("apgd.models.clip_geometry", "apgd.pickled"),
)


def vision_base(geometry: Geometry) -> Path:
    """The pretrained vision tower, a safetensors file with canonical names in float32.

    Raises:
        InputError: where the weights cannot be had, or are not those of the model.
    """
    return _tower(geometry, "vision")


def has_vision_base(geometry: Geometry) -> bool:
    """Whether `vision_base` is there, so that nothing is fetched or written for it."""
    source = cached_weights(geometry.hub_id)
    return source is not None and _tower_path(geometry, "vision", source).exists()


def class_vectors(geometry: Geometry, task: Task) -> Tensor:
    """A task's class vectors by the pretrained text tower, float32 (classes, projection).

    They are made once per machine: class names and templates, and the tower, decide where they are
    kept.

    Raises:
        InputError: where the weights cannot be had, or are not those of the model.
    """
    vision, text = _tower(geometry, "vision"), _tower(geometry, "text")
    key = content_key([text.name, task.class_names, task.templates])
    path = cache_root() / "heads" / f"{geometry.name}-{task.name}-{key}.safetensors"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            model = transformers_clip(geometry)
            model.load_state_dict({**load_file(vision), **load_file(text)}, assign=True)
            vectors = transformers_zero_shot_head(model, clip_tokenizer(), task)
            save_weights(path, {"classes": vectors}, {"task": task.name})
    return load_file(path)["classes"]


@cache
def _sha256(path: Path, _changed: int) -> str:
    """The hash of a file, computed once per process as long as it is not changed."""
    return sha256_file(path)


def _tower_path(geometry: Geometry, part: str, source: Path) -> Path:
    key = content_key([_sha256(source, source.stat().st_mtime_ns), source_hash(*_CODE)])
    return cache_root() / "models" / f"{geometry.name}-{part}-{key}.safetensors"


def _tower(geometry: Geometry, part: str) -> Path:
    """One tower in the canonical layout, converted from the hub's file where it is not there."""
    source = hub_weights(geometry.hub_id)
    sha256 = _sha256(source, source.stat().st_mtime_ns)
    path = _tower_path(geometry, part, source)
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            read = read_vision_tower if part == "vision" else read_text_tower
            state = read(source, geometry, f"the base {geometry.hub_id}")
            about = {"source": geometry.hub_id, "sha256": sha256}
            save_weights(path, state, {**about, "activation": geometry.activation.value})
    return path
