"""Encoders as programs that torch compiles for the device they run on."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from apgd.errors import InputError

Encoder = Callable[[nn.Module, Tensor], Tensor]
"""Unit embeddings of preprocessed images: model, (n, 3, h, w) -> (n, width)."""


@cache
def compiled(encoder: Encoder) -> Encoder:
    """The same encoder, compiled at its first call for the model and the shape that it gets there.

    Weights may change from call to call; another shape is compiled anew. One program is made per
    process, however many ask for it.
    """
    program: Encoder = torch.compile(encoder, dynamic=False)
    return program


@cache
def check_compiler(kind: str) -> None:
    """Compile something small, once per process.

    Args:
        kind: type of the device, for example "cpu" or "cuda".

    Raises:
        InputError: where torch cannot compile for it here, mostly for lack of a C++ compiler.
    """

    def small(x: Tensor) -> Tensor:
        return x.sin() + 1

    try:
        torch.compile(small, dynamic=False)(torch.zeros(8, device=kind))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"a machine must have what torch compiles with for {kind} (a C++ compiler, as g++ or "
            f"as CXX names it) for scoring to be compiled, but torch says: {reason}"
        ) from error
