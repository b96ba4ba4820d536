"""Data-free merging of fine-tuned experts by adaptive projective gradient descent."""

from importlib.metadata import version

from apgd.errors import InputError
from apgd.merging import merge
from apgd.task_vectors import TaskVectors

__version__ = version("apgd")

__all__ = ["InputError", "TaskVectors", "__version__", "merge"]
