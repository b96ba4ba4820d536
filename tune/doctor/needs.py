"""What a run of a suite takes of a machine: calculated, without loading or fetching anything."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from apgd.budget import finetune_budget, wants_gpu
from apgd.data import Split
from apgd.suites import Suite
from tune.experiment import experts_bytes

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a suite takes."""

    suite: str
    experts_bytes: int
    """Of the disk with the folder of experts, at one seed."""
    cache_bytes: int
    """Of the disk with the cache: the base model and decoded pictures, downloads not counted."""
    memory_bytes: int
    """Of the memory, for a worker without a GPU."""
    wants_gpu: bool
    """Whether fine-tuning takes days without one."""
    fits: Callable[[int], tuple[bool, str]]
    """Whether an expert can be fine-tuned on a GPU with so much free memory, and a sentence."""


def needs_of(suite: Suite) -> Needs:
    """What a run of a suite takes."""
    with torch.device("meta"):
        state = suite.build_model().state_dict()
    model = 4 * sum(math.prod(tensor.shape) for tensor in state.values())

    def fits(free: int) -> tuple[bool, str]:
        budget = finetune_budget(suite, suite.finetune, free)
        return budget.fits, budget.sentence

    return Needs(
        suite=suite.name,
        experts_bytes=experts_bytes(len(suite.tasks), model),
        cache_bytes=2 * model + _pixel_bytes(suite) if suite.datasets() else _GIB // 4,
        memory_bytes=4 * model + 2 * _GIB,
        wants_gpu=wants_gpu(suite),
        fits=fits,
    )


def _pixel_bytes(suite: Suite) -> int:
    """Size of the decoded validation and test images, as far as numbers of rows are known."""
    if suite.image_size is None:
        return 0
    rows = 0
    for dataset in suite.datasets().values():
        rows += dataset.rows.get(dataset.splits[Split.TEST], 0)
        if Split.TRAIN in dataset.splits:  # a tenth of it is our validation split
            rows += dataset.rows.get(dataset.splits[Split.TRAIN], 0) // 10
    return rows * 3 * suite.image_size**2
