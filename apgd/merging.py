"""The library in one function."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from apgd.checkpoints import WeightSource
from apgd.estimate import check_memory, needs
from apgd.evidence import NO_EVIDENCE, Evidence, describe
from apgd.execution import Executor
from apgd.methods import MergedLayer, Method, MethodParams, Value, methods
from apgd.summary import LayerSummary, MergeSummary
from apgd.task_vectors import Select, TaskVectors

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the entries that are done and their total."""


class Merged(dict[str, Tensor]):
    """A merged state dict, with the summary of how it came about."""

    summary: MergeSummary


def merge(
    method: str,
    base: WeightSource,
    experts: Mapping[str, WeightSource],
    *,
    select: Select | None = None,
    device: str | torch.device = "cpu",
    executor: Executor | None = None,
    evidence: Evidence = NO_EVIDENCE,
    progress: Progress | None = None,
    **params: Value,
) -> Merged:
    """Merge experts that were fine-tuned from one base into one model.

    The result is in memory; `apgd.merge_files` writes one of any size to disk as it goes.

    Args:
        method: name of a merge method; `apgd.methods.methods` has them all.
        base: the pretrained weights, a state dict or the path of safetensors files.
        experts: the fine-tuned weights by the expert's name, each a state dict or a path.
        select: whether a parameter is merged, by its name and a tensor of its shape and type;
            every floating-point matrix, where None. Others are the base's, and listed in the
            summary.
        device: where the merge is computed.
        executor: who computes it; this process where None, a cluster with
            `tune.ray_executor.RayExecutor`.
        evidence: what the method needs besides base and experts; nothing for most.
        progress: called with the entries merged so far and their total.
        **params: the method's parameters by name; those left out have their published value.

    Returns:
        The merged model's state dict, on the CPU, in the base's dtypes; its `summary` says what was
        done to every layer.

    Raises:
        InputError: for an unknown method or parameter, a value outside its range, experts that do
            not fit the base, weights that are not finite, or evidence that is missing.
    """
    chosen = methods[method]
    settings = chosen.parse(params)
    vectors = TaskVectors(base, experts, select, device=device, keep=False, executor=executor)
    chosen.check(vectors, settings, evidence)
    check_memory(needs(chosen, vectors, shard_bytes=None), vectors)
    return merge_vectors(chosen, settings, vectors, progress, evidence)


def merge_vectors(
    method: Method,
    params: MethodParams,
    vectors: TaskVectors,
    progress: Progress | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> Merged:
    """`merge` with everything opened and checked."""
    started = time.perf_counter()
    layers: dict[str, MergedLayer] = {}
    total = sum(math.prod(vectors.shape(name)) for name in vectors.names)
    vectors = method.transform(vectors, params)
    for name, layer in method.layers(vectors, params, method.prepare(vectors, params, evidence)):
        layers[name] = layer
        if progress is not None:
            progress(sum(math.prod(vectors.shape(done)) for done in layers), total)
    merged = Merged(vectors.apply({name: layer.delta for name, layer in layers.items()}))
    merged.summary = summarise(
        method, params, vectors, (layer.summary for layer in layers.values()), started, evidence
    )
    return merged


def summarise(
    method: Method,
    params: MethodParams,
    vectors: TaskVectors,
    layers: Iterable[LayerSummary],
    started: float,
    evidence: Evidence = NO_EVIDENCE,
) -> MergeSummary:
    """The summary of a merge that began at `started` on the performance counter."""
    return MergeSummary(
        method=method.name,
        params=params.as_dict(),
        experts=vectors.experts,
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        not_merged=vectors.not_merged,
        tied=vectors.tied,
        seconds=time.perf_counter() - started,
        evidence=describe(evidence),
    )
