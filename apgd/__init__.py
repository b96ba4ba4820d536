"""Data-free merging of fine-tuned experts by adaptive projective gradient descent."""

from importlib.metadata import version

from apgd.errors import InputError
from apgd.merging import Merged, merge
from apgd.streaming import merge_files
from apgd.summary import LayerSummary, MergeSummary
from apgd.task_vectors import TaskVectors

__version__ = version("apgd")

__all__ = [
    "InputError",
    "LayerSummary",
    "MergeSummary",
    "Merged",
    "TaskVectors",
    "__version__",
    "merge",
    "merge_files",
]
