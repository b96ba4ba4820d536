"""The model card: what was merged and how, for people and for the hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from apgd.checkpoints import InFiles, read_metadata
from apgd.errors import InputError
from apgd.export.content import Content
from apgd.files import sha256_path
from apgd.lora import ADAPTER_FILES, is_adapter
from apgd.methods import methods
from apgd.models.clip_hub import read_config, weights_file
from apgd.source import library_versions
from apgd.streaming import SUMMARY

_REPOSITORY_LIBRARIES = ("torch", "transformers", "open_clip_torch", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ExpertOrigin:
    """One expert of a merge."""

    name: str
    file: str | None = None
    """The name of its file or folder; None where it is not known."""
    sha256: str | None = None
    """Hash of its content; None where it is not known."""
    source: str | None = None
    """What it was converted from, where its file records that."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where merged weights come from."""

    title: str
    method: str
    """Identifier of the merge method."""
    params: Mapping[str, Any]
    """Its parameters; the ones not named had their defaults."""
    experts: tuple[ExpertOrigin, ...]
    base_model: str | None = None
    """Repository of the base on the hub; told by the model's sizes where None."""
    matrices: int | None = None
    """How many matrices were merged, where a summary tells."""
    others: int | None = None
    """How many parameters are the base's, unchanged."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Task -> figure."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """What the merge recorded."""


def origin_of(
    merged: Path,
    *,
    title: str | None = None,
    experts: Mapping[str, Path] | None = None,
    summary: Path | None = None,
    scores: Path | None = None,
    base_model: str | None = None,
) -> Origin:
    """What merged weights and the files beside them tell of their origin.

    Args:
        merged: a file or folder that `apgd merge` wrote.
        title: the card's title.
        experts: the experts' files, to be hashed; they must be those of the merge.
        summary: what `apgd merge --summary` wrote; a folder holds its own.
        scores: a JSON object, task -> figure.
        base_model: repository of the base on the hub.

    Raises:
        InputError: where nothing is recorded, or files do not fit.
    """
    weights = InFiles("the merged model", weights_file(merged))
    recorded: dict[str, Any] = dict(read_metadata(weights.paths()[0]))
    if merged.is_dir() and (merged / SUMMARY).exists():
        recorded = read_config(merged / SUMMARY)
    if summary is not None:
        told = read_config(summary)
        if "method" in recorded and told.get("method") != recorded["method"]:
            raise InputError(
                f"{summary} must be the summary of this merge by {recorded['method']}, but is of "
                f"one by {told.get('method')}"
            )
        recorded = told
    try:
        method, params = str(recorded["method"]), dict(recorded["params"])
        names = tuple(str(name) for name in recorded["experts"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"merged weights must say what they were merged from, as apgd merge records it, but "
            f"{merged} does not ({error!r}); give its summary"
        ) from error
    files = dict(experts or {})
    if files and set(files) != set(names):
        raise InputError(
            f"the experts must be those of the merge, {', '.join(names)}, but got "
            f"{', '.join(files)}"
        )
    layers, unmerged = recorded.get("layers"), recorded.get("not_merged")
    return Origin(
        title=title or f"{methods[method].title} of {len(names)} experts",
        method=method,
        params=params,
        experts=tuple(_expert(name, files.get(name)) for name in names),
        base_model=base_model,
        matrices=len(layers) if isinstance(layers, list) else None,
        others=len(unmerged) if isinstance(unmerged, list) else None,
        scores=_scores(scores),
        manifest={n: v for n, v in recorded.items() if n not in ("layers", "not_merged", "tied")},
    )


def card(content: Content, origin: Origin) -> str:
    """The text of README.md, front matter included.

    Raises:
        InputError: for an unknown merge method.
    """
    base_model = origin.base_model or content.base_model
    front = ModelCardData(
        base_model=base_model,
        library_name=content.library.value,
        license="other",
        license_name="see-base-model",
        pipeline_tag=content.pipeline,
        tags=["model-merging", "merge", "apgd", *content.tags],
    )
    if base_model:
        front["base_model_relation"] = "merge"
    environment = Environment(
        loader=PackageLoader("apgd.export", "."),
        autoescape=False,  # noqa: S701 - Markdown; `cell` takes care of what would break a table
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.j2").render(
        front=front.to_yaml(),
        content=content,
        origin=origin,
        base_model=base_model,
        method=methods[origin.method],
        manifest=json.dumps(dict(origin.manifest), indent=2, sort_keys=True),
        versions=library_versions("apgd", *_REPOSITORY_LIBRARIES),
    )


def _expert(name: str, path: Path | None) -> ExpertOrigin:
    if path is None:
        return ExpertOrigin(name=name)
    file = path / ADAPTER_FILES[1] if is_adapter(path) else weights_file(path)
    weights = InFiles(f"expert {name}", file)
    source = read_metadata(weights.paths()[0]).get("source")
    return ExpertOrigin(
        name=name,
        file=path.name,
        sha256=sha256_path(path),
        source=str(source) if source is not None else None,
    )


def _scores(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    found = read_config(path)
    for task, figure in found.items():
        if isinstance(figure, bool) or not isinstance(figure, int | float):
            raise InputError(f"{path} must map tasks to figures, but {task!r} has {figure!r:.80}")
    return {task: float(figure) for task, figure in found.items()}


def _cell(value: object) -> str:
    """A value as text that stays within its cell of a Markdown table."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
