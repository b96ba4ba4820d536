"""Merge methods: one file each, found by being there.

A method is a frozen dataclass of parameters and a pure function of one matrix's task vectors and
parameters; see `Method`. A module in this package that defines one at top level is on the command
line, in the search and under the contract tests; so is one in a folder that the environment
variable APGD_METHODS names.
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
from apgd.methods._plug import PLUGS, SUFFIX, put_on
from apgd.methods._registry import Methods, own_folders

own_folders(sys.modules[__name__])
methods = Methods(sys.modules[__name__], Method, "method")

__all__ = [
    "PLUGS",
    "SUFFIX",
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
    "put_on",
]
