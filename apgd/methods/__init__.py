"""Merge methods: one file each, found by being there.

A method is a frozen dataclass of parameters and a pure function of one matrix's task vectors and
parameters; see `Method`. A module in this package that defines one at top level is on the command
line, in the search and under the contract tests.
"""

import sys

from apgd.methods._method import (
    Combined,
    Limit,
    MergedLayer,
    Method,
    MethodParams,
    Parameter,
    Value,
    choice_parameter,
    parameter,
)
from apgd.registry import Registry

methods: Registry[Method] = Registry(sys.modules[__name__], Method, "method")

__all__ = [
    "Combined",
    "Limit",
    "MergedLayer",
    "Method",
    "MethodParams",
    "Parameter",
    "Value",
    "choice_parameter",
    "methods",
    "parameter",
]
