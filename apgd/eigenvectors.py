"""Leading eigenvectors of symmetric matrices."""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.linalg import cython_lapack
from torch import Tensor

_MANY = 4
"""From this share of a matrix's eigenvectors on, one in so many, all of them cost no more."""


def leading_eigenvectors(
    gram: Tensor,  # (s, s), symmetric, float64; overwritten
    count: int,
) -> tuple[Tensor, Tensor]:  # (count,), (s, count)
    """The `count` largest eigenvalues in descending order, and their eigenvectors."""
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0), vectors.flip(1)
    elif _MANY * count < len(gram):
        return _some_eigenvectors(gram, count)
    else:
        # LAPACK has a faster way where all are wanted than where some are.
        values, vectors = _some_eigenvectors(gram, len(gram))
    return values[:count], vectors[:, :count]


def _some_eigenvectors(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """LAPACK's dsyevr, which makes only those eigenvectors that are asked for.

    torch has no such function. SciPy's own holds the interpreter's lock while it computes, and here
    several experts are worked on at once, so its LAPACK is called without it.
    """
    size = gram.shape[0]
    values, vectors = np.empty(size), np.empty((count, size))
    support = np.empty(2 * count, np.intc)
    work, integers = np.empty(1), np.empty(1, np.intc)
    none, found, info = ctypes.c_double(), ctypes.c_int(), ctypes.c_int()
    for lengths in ((-1, -1), None):  # first LAPACK is asked how much working space it wants
        if lengths is None:
            work, integers = np.empty(int(work[0])), np.empty(int(integers[0]), np.intc)
            lengths = (len(work), len(integers))
        _dsyevr()(
            b"V", b"I", b"U",
            _int(size), _address(gram.numpy()), _int(size),
            ctypes.byref(none), ctypes.byref(none), _int(size - count + 1), _int(size),
            ctypes.byref(none), ctypes.byref(found), _address(values),
            _address(vectors), _int(size), _address(support),
            _address(work), _int(lengths[0]), _address(integers), _int(lengths[1]),
            ctypes.byref(info),
        )  # fmt: skip
        if info.value != 0 or (work.size > 1 and found.value != count):
            raise RuntimeError(f"LAPACK's dsyevr failed with status {info.value}")
    return (
        torch.from_numpy(values[:count]).flip(0),
        torch.from_numpy(vectors).flip(0).T,
    )


def _int(value: int) -> object:
    return ctypes.byref(ctypes.c_int(value))


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _dsyevr() -> Callable[..., None]:
    capsule = cython_lapack.__pyx_capi__["dsyevr"]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    kinds = [ctypes.c_char_p] * 3 + [ctypes.c_void_p] * 18
    return ctypes.CFUNCTYPE(None, *kinds)(pointer(capsule, name(capsule)))
