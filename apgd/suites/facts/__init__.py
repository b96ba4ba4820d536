"""Facts about the public data sets behind the paper's suites.

Hub ids, configurations, splits, columns and class names are those that FusionBench's configuration
names. Numbers of rows are pinned where they are known for certain.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from apgd.data.hub import HubDataset, hub_dataset

__all__ = ["glue_datasets", "vision_datasets"]


def vision_datasets() -> Mapping[str, HubDataset]:
    """The 20 image classification data sets by task, in the order of the 20-task suite."""
    return _read("vision")


def glue_datasets() -> Mapping[str, HubDataset]:
    """The 8 GLUE data sets by task; their public validation split is our TEST, as elsewhere."""
    return _read("glue")


@cache
def _read(name: str) -> Mapping[str, HubDataset]:
    content = json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
    return MappingProxyType({task: hub_dataset(task, entry) for task, entry in content.items()})
