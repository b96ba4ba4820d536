"""Which examples a step sees."""

import torch
from torch import Tensor


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """The examples of one step: epoch after epoch, each in an order of its own.

    A function of its arguments alone, so that a resumed training sees what it would have seen.

    Args:
        step: 0, 1, ...
        batch_size: examples of a step; fewer only where there are not as many.
        count: examples that there are.
        seed: of the orders; in [0, 2^43).
    """
    per_epoch = max(1, count // batch_size)
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size]
