"""The library in one function."""

from collections.abc import Mapping

import torch
from torch import Tensor

from apgd.checkpoints import WeightSource
from apgd.methods import methods
from apgd.task_vectors import Select, TaskVectors


def merge(
    method: str,
    base: WeightSource,
    experts: Mapping[str, WeightSource],
    *,
    select: Select | None = None,
    device: str | torch.device = "cpu",
    **params: float | int | None,
) -> dict[str, Tensor]:
    """Merge experts that were fine-tuned from one base into one model, without data.

    Args:
        method: name of a merge method; `apgd.methods.methods` has them all.
        base: the pretrained weights, a state dict or the path of a safetensors file.
        experts: the fine-tuned weights by the expert's name, each a state dict or a path.
        select: predicate on a parameter's name and value that says whether it is merged; every
            two-dimensional weight, where None. Parameters that are not selected are the base's.
        device: where the merge is computed.
        **params: the method's parameters by name; those left out have their published value.

    Returns:
        The merged model's state dict, on the CPU, in the base's dtypes.

    Raises:
        InputError: for an unknown method or parameter, a value outside its range, experts that do
            not fit the base, or weights that are not finite.
    """
    chosen = methods[method]
    settings = chosen.parse(params)
    vectors = TaskVectors(base, experts, select, device=device, keep=False)
    return vectors.apply(chosen.merge(vectors, settings))
