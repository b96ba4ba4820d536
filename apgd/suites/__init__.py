"""Suites: one file per suite, found by being there.

A suite says which base model is used, which tasks its experts learn, which matrices are merged, and
which published figures belong beside ours.
"""

import sys

from apgd.suites._own import Suites, with_tasks
from apgd.suites._suite import FinetuneSettings, LoraSettings, Suite

suites = Suites(sys.modules[__name__], Suite, "suite")  # type: ignore[type-abstract]

__all__ = ["FinetuneSettings", "LoraSettings", "Suite", "suites", "with_tasks"]
