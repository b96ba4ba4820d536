"""Merge models of any size: experts are read layer by layer, the result is written shard by shard.

A shard that is on disk is done; a merge that was interrupted goes on with the next one. Nothing
else is kept between the two, and no more than one shard and the layers in work is ever in memory.
"""

import fcntl
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apgd.checkpoints import (
    INDEX,
    SINGLE,
    InFiles,
    is_shard,
    read_metadata,
    save_weights,
    write_index,
)
from apgd.errors import InputError
from apgd.estimate import check_disk, check_memory, needs
from apgd.evidence import NO_EVIDENCE, Evidence, describe
from apgd.execution import Executor, Here, give_back_memory
from apgd.files import atomic_path, check_writable, content_key, is_leftover, write_json
from apgd.merging import Progress, summarise
from apgd.methods import Method, MethodParams, Value, methods
from apgd.source import library_versions, source_hash
from apgd.summary import LayerSummary, MergeSummary, layer_from_dict
from apgd.task_vectors import Select, TaskVectors

SHARD_BYTES = 2**28
SUMMARY = "merge_summary.json"
_JOB = "merge.json"
_COPIED = (".json", ".txt", ".model", ".jinja")
_LOCK = ".lock"
_LIBRARIES = ("numba", "numpy", "scipy", "torch")
_MODELS = ("open_clip_torch", "transformers", "tokenizers", "pillow")
"""They make predictions of unlabelled inputs."""


@dataclass(frozen=True)
class Shard:
    """One file of the merged model."""

    file: str
    names: tuple[str, ...]


def merge_files(
    method: str,
    base: str | Path,
    experts: Mapping[str, str | Path],
    out: str | Path,
    *,
    select: Select | None = None,
    device: str | torch.device = "cpu",
    executor: Executor | None = None,
    evidence: Evidence = NO_EVIDENCE,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    **params: Value,
) -> MergeSummary:
    """Merge experts on disk into a folder of shards, in bounded memory.

    Peak memory is at most that of the largest matrix times N + 6, in float32, plus 1.5 GB, whatever
    the model's size; a method that needs more for a matrix says how much (`Method.holds`), and
    test-time methods hold all task vectors where there is room. Called again after an interruption,
    it goes on with the shards that are missing; the result is the same, bit for bit.

    Args:
        method: name of a merge method.
        base: the pretrained weights, the path of a safetensors file or of a folder of shards.
        experts: the fine-tuned weights by the expert's name, likewise.
        out: the folder to write: shards, their index, `merge_summary.json`, and the base's
            configuration and tokenizer files where the base is a folder.
        select: as in `apgd.merge`.
        device: where the merge is computed.
        executor: who computes it; every machine must then see base, experts and `out`.
        evidence: what the method needs besides base and experts; statistics must be files that
            every machine sees.
        shard_bytes: size in bytes of a shard; a larger tensor has one of its own.
        overwrite: replace another merge in `out`, instead of refusing to.
        progress: called after each shard.
        **params: the method's parameters by name.

    Returns:
        What was done to every layer.

    Raises:
        InputError: as `apgd.merge` does, and where `out` holds something else.
    """
    chosen = methods[method]
    settings = chosen.parse(params)
    vectors = TaskVectors(base, experts, select, device=device, keep=False, executor=executor)
    chosen.check(vectors, settings, evidence)
    return stream(chosen, settings, vectors, out, shard_bytes, overwrite, progress, evidence)


def stream(
    method: Method,
    params: MethodParams,
    vectors: TaskVectors,
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> MergeSummary:
    """`merge_files` with everything opened and checked."""
    started = time.perf_counter()
    shards = plan_shards(vectors, shard_bytes)
    job = job_of(method, params, vectors, shards, evidence)
    check_memory(needs(method, vectors, shard_bytes=shard_bytes), vectors)
    out = Path(out).resolve()  # as other machines are told it
    check_apart(out, vectors)
    done = {
        shard.file: found for shard in shards if (found := _finished(out, shard, job)) is not None
    }
    missing = [shard for shard in shards if shard.file not in done]
    check_disk(sum(_bytes(vectors, name) for shard in missing for name in shard.names), out)
    _check_folder(out, job, overwrite)
    with _alone_in(out):
        return _write(method, params, vectors, evidence, out, shards, job, done, progress, started)


def _write(
    method: Method,
    params: MethodParams,
    vectors: TaskVectors,
    evidence: Evidence,
    out: Path,
    shards: list[Shard],
    job: dict[str, Any],
    done: dict[str, list[LayerSummary]],
    progress: Progress | None,
    started: float,
) -> MergeSummary:
    missing = [shard for shard in shards if shard.file not in done]
    sizes = {name: _entries(vectors, name) for name in vectors.base.names()}
    report = progress or (lambda _done, _total: None)
    written = sum(sizes[name] for shard in shards if shard.file in done for name in shard.names)
    report(written, sum(sizes.values()))
    if not missing and (out / INDEX).exists() and (out / SUMMARY).exists():
        return MergeSummary.from_dict(json.loads((out / SUMMARY).read_text(encoding="utf-8")))
    if missing:  # what is there already stays until nothing is wrong with the evidence
        vectors = method.transform(vectors, params)
        prepared = method.prepare(vectors, params, evidence)
    write_json(out / _JOB, job)
    _clean(out, keep=set(done))
    if missing:
        write = partial(_write_shard, method, params, prepared, job["key"], out)
        missing.sort(key=lambda shard: -sum(sizes[n] for n in shard.names if n in vectors.names))
        for shard, layers in _write_all(method, write, vectors, missing):
            done[shard.file] = layers
            written += sum(sizes[name] for name in shard.names)
            report(written, sum(sizes.values()))
    _copy_companions(vectors, out)
    summary = summarise(
        method,
        params,
        vectors,
        (layer for found in done.values() for layer in found),
        started,
        evidence,
    )
    write_json(out / SUMMARY, summary.as_dict())
    total = sum(_bytes(vectors, name) for name in vectors.base.names())
    write_index(out, {name: shard.file for shard in shards for name in shard.names}, total)
    return summary


def plan_shards(vectors: TaskVectors, shard_bytes: int) -> list[Shard]:
    """Which file holds which parameters: in the order of their names, the same for the same model.

    Raises:
        InputError: where the size is not positive.
    """
    if shard_bytes <= 0:
        raise InputError(f"a shard must have a size in bytes above 0, but got {shard_bytes}")
    groups: list[list[str]] = [[]]
    size = 0
    for name in vectors.base.names():
        size += _bytes(vectors, name)
        if size > shard_bytes and groups[-1]:
            groups.append([])
            size = _bytes(vectors, name)
        groups[-1].append(name)
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(names))
        for number, names in enumerate(groups, start=1)
    ]


def job_of(
    method: Method,
    params: MethodParams,
    vectors: TaskVectors,
    shards: list[Shard],
    evidence: Evidence = NO_EVIDENCE,
) -> dict[str, Any]:
    """What defines the content of an output folder; its `key` goes into every shard."""
    job = {
        "method": method.name,
        "params": params.as_dict(),
        "experts": list(vectors.experts),  # in their order
        "inputs": {name: source.identity() for name, source in vectors.sources.items()},
        "evidence": describe(evidence),
        "merged": list(vectors.names),
        "shards": [asdict(shard) for shard in shards],
        "code": source_hash("apgd", "apgd.methods"),  # also methods from elsewhere
        "versions": library_versions(*_LIBRARIES, *(_MODELS if evidence.inputs else ())),
        "device": vectors.device.type,
    }
    job = json.loads(json.dumps(job))  # tuples become lists, as they are when read again
    return {**job, "key": content_key(job)}


def check_apart(out: Path, vectors: TaskVectors) -> None:
    """Raise InputError where the output is one of the inputs, or there are none to read."""
    out = out.resolve()
    for source in vectors.sources.values():
        if not source.paths():
            raise InputError(f"{source.label} must be given as a path, but is in memory")
        for path in source.paths():
            # Where a link lies counts as much as what it leads to.
            if out in (path, path.parent.resolve(), path.resolve().parent, path.resolve()):
                raise InputError(
                    f"the output must not be one of the inputs or hold one, but {out} is or does: "
                    f"{source.label}"
                )


def _check_folder(out: Path, job: dict[str, Any], overwrite: bool) -> None:
    """Raise InputError where the folder holds anything but this merge, or cannot be written to."""
    if out.exists() and not out.is_dir():
        raise InputError(f"the output must be a folder, but {out} is a file")
    check_writable(out, "the output folder")
    found = out / _JOB
    if found.exists() and not overwrite:
        known = _read_job(found)
        if known["key"] != job["key"]:
            differing = sorted(key for key in job if key != "key" and known.get(key) != job[key])
            raise InputError(
                f"{out} holds another merge, with other {' and '.join(differing)}; "
                f"choose another folder, or replace it with --overwrite"
            )
    foreign = [p.name for p in out.iterdir() if not is_leftover(p) and p.name != _LOCK]
    if foreign and not found.exists() and not overwrite:
        raise InputError(
            f"{out} holds files that are not of a merge, the first being {min(foreign)}; "
            f"choose another folder, or replace its weights with --overwrite"
        )


def _clean(out: Path, keep: set[str]) -> None:
    """Remove what killed processes left, and weights that are not of this merge."""
    for path in out.iterdir():
        weights = is_shard(path) or path.name in (SINGLE, INDEX, SUMMARY)
        if is_leftover(path) or (weights and path.name not in keep):
            path.unlink()


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder: two processes at once would remove each other's files.

    Raises:
        InputError: where another process holds it.
    """
    with (out / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing to {out}; wait for it") from None
        try:
            yield
        finally:
            (out / _LOCK).unlink(missing_ok=True)


def _read_job(path: Path) -> dict[str, Any]:
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        return {**job, "key": str(job["key"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must say what is merged there, but is damaged; choose another folder, "
            f"or replace its weights with --overwrite"
        ) from error


def _write_all(
    method: Method,
    write: Callable[[TaskVectors, Shard], list[dict[str, Any]]],
    vectors: TaskVectors,
    shards: list[Shard],
) -> Iterator[tuple[Shard, list[LayerSummary]]]:
    results: Iterator[tuple[int, list[dict[str, Any]]]]
    if isinstance(vectors.executor, Here):  # which works on a shard's layers side by side
        results = ((i, write(vectors, shard)) for i, shard in enumerate(shards))
    else:
        sizes = [_working_bytes(method, vectors, shard) for shard in shards]
        results = vectors.executor.map(write, vectors, shards, sizes)
    for index, layers in results:
        yield shards[index], [layer_from_dict(layer) for layer in layers]


def _working_bytes(method: Method, vectors: TaskVectors, shard: Shard) -> int:
    """Memory in bytes that merging a shard takes: what is not merged is only copied."""
    merged = set(vectors.names)
    return max(
        method.working_bytes(vectors, name) if name in merged else vectors.stored_bytes(name)
        for name in shard.names
    )


def _write_shard(
    method: Method,
    params: MethodParams,
    prepared: Any,
    key: str,
    out: Path,
    vectors: TaskVectors,
    shard: Shard,
) -> list[dict[str, Any]]:
    """Merge a shard's parameters and write it; the summaries of its layers as JSON values.

    Raises:
        InputError: where this machine does not see the output folder.
    """
    if not (out / _JOB).exists() or _read_job(out / _JOB)["key"] != key:
        raise InputError(
            f"the output must be on storage that all machines share, but {platform.node()} does "
            f"not see this merge in {out}"
        )
    merged = tuple(name for name in shard.names if name in vectors.names)
    tensors: dict[str, Tensor] = {}
    layers = []
    for name, layer in method.layers(vectors.only(merged), params, prepared):
        layers.append(asdict(layer.summary))
        tensors[name] = vectors.applied(name, {name: layer.delta})
    for name in shard.names:
        if name not in tensors:
            tensors[name] = vectors.applied(name, {})
    layers.sort(key=lambda layer: layer["name"])
    told = {"key": key, "layers": layers}
    save_weights(out / shard.file, dict(sorted(tensors.items())), told, for_transformers=True)
    del tensors
    give_back_memory()
    return layers


def _finished(out: Path, shard: Shard, job: dict[str, Any]) -> list[LayerSummary] | None:
    """The layers of a shard that is on disk, None where it is not, or is of another merge."""
    path = out / shard.file
    if not path.exists():
        return None
    try:
        found: Any = read_metadata(path)
    except InputError:  # damaged after it was written: it is written again
        return None
    if found.get("key") != job["key"]:
        return None
    return [layer_from_dict(layer) for layer in found["layers"]]


def _copy_companions(vectors: TaskVectors, out: Path) -> None:
    """Copy the base's configuration and tokenizer, never code, beside the merged weights."""
    base = vectors.base
    if not isinstance(base, InFiles) or base.folder is None:
        return
    for path in sorted(base.folder.iterdir()):
        taken = path.name in (SUMMARY, _JOB) or path.name.endswith(".index.json")
        if path.is_file() and path.suffix in _COPIED and not taken:
            with atomic_path(out / path.name) as temporary:
                shutil.copyfile(path, temporary)


def _entries(vectors: TaskVectors, name: str) -> int:
    return math.prod(vectors.base.shape(name))


def _bytes(vectors: TaskVectors, name: str) -> int:
    return _entries(vectors, name) * vectors.base.dtype(name).itemsize
