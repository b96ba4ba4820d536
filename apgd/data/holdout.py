"""Which rows of a data set belong to which of our splits: fixed by the number of rows alone."""

import numpy as np
import torch

from apgd.data.hub import HubDataset
from apgd.data.tasks import Split

VALIDATION_SHARE = 0.1
"""Share of the train split that is our VALIDATION."""
TEST_SHARE = 0.2
"""Share of a user's own examples that becomes the test split where they come as one pool."""
_SEED = 0


def split_size(dataset: HubDataset, split: Split) -> int | None:
    """How many rows one of our splits has; None where the data set's own number is not known.

    Args:
        dataset: whose.
        split: which of ours.
    """
    source = dataset.splits.get(Split.TEST if split == Split.TEST else Split.TRAIN)
    count = dataset.rows.get(source) if source is not None else None
    if count is None or split == Split.TEST:
        return count
    held = int(VALIDATION_SHARE * count)
    return held if split == Split.VALIDATION else count - held


def split_rows(split: Split, count: int) -> np.ndarray:  # int64, (examples,)
    """The rows of a source split that make one of ours, in the order in which ours has them.

    TRAIN and VALIDATION partition the data set's train split by a permutation with seed 0, the last
    tenth (rounded down) being VALIDATION; this is the partition of FusionBench's
    `train_validation_split`. TEST is the whole test split. The order is random, so that the
    first n examples of a split are a sample of it also where a data set is sorted by class.

    Args:
        split: Which of ours.
        count: Rows of the data set's split that it is taken from.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED)).numpy()
    kept = count - int(VALIDATION_SHARE * count)
    if split is Split.TRAIN:
        return order[:kept]
    if split is Split.VALIDATION:
        return order[kept:]
    return order


def pool_rows(part: Split, count: int) -> np.ndarray:  # bool, (count,)
    """Which rows of one undivided pool belong to its TRAIN or TEST part (seed 0)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED)).numpy()
    tested = np.zeros(count, dtype=bool)
    tested[order[: max(1, int(TEST_SHARE * count))]] = True
    return tested if part is Split.TEST else ~tested
