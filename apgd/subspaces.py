"""Leading singular subspaces, from the Gram matrix of a matrix's smaller side."""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.linalg import cython_lapack
from torch import Tensor

_PANEL = 1024
_ROUNDING = 4


def leading_left_singular_vectors(
    matrix: Tensor,  # (m, n)
    count: int,
) -> Tensor:  # (m, min(count, rank))
    """The left singular vectors of the `count` largest singular values, in descending order.

    They come from the Gram matrix in float64, so that squaring the singular values costs no
    accuracy at float32. Directions whose singular value is zero up to rounding are left out: they
    are arbitrary, and a subspace made of them would be too.
    """
    m, n = matrix.shape
    count = min(count, m, n)
    if count == 0:
        return matrix.new_zeros(m, 0)
    squares, leading = _leading_eigenvectors(_gram(matrix if m <= n else matrix.T), count)
    # Entries rounded to float32 leave singular values of about √max(m, n) · eps of the largest.
    cutoff = squares[0] * max(m, n) * (_ROUNDING * torch.finfo(torch.float32).eps) ** 2
    leading = leading[:, : int((squares > cutoff).sum())]
    if m > n:
        # A v_i = σ_i u_i: orthogonal columns, which QR normalises without dividing by a small σ_i.
        leading = torch.linalg.qr(_wide_product(matrix, leading)).Q
    return leading.to(matrix.dtype)


def _gram(
    matrix: Tensor,  # (m, n), m <= n
) -> Tensor:  # (m, m), float64
    """A Aᵀ; A is widened to float64 a few columns at a time, so no second copy of it is needed."""
    m, n = matrix.shape
    gram = torch.zeros(m, m, dtype=torch.float64, device=matrix.device)
    for first in range(0, n, _PANEL):
        columns = matrix[:, first : first + _PANEL].double()
        if columns.device.type == "cpu":
            array = columns.numpy()
            gram += torch.from_numpy(array @ array.T)  # NumPy sees the symmetry, and does half
        else:
            gram.addmm_(columns, columns.T)
    return gram


def _wide_product(
    matrix: Tensor,  # (m, n)
    vectors: Tensor,  # (n, k), float64
) -> Tensor:  # (m, k), float64
    product = vectors.new_empty(matrix.shape[0], vectors.shape[1])
    for first in range(0, matrix.shape[0], _PANEL):
        rows = slice(first, first + _PANEL)
        torch.mm(matrix[rows].double(), vectors, out=product[rows])
    return product


def _leading_eigenvectors(
    gram: Tensor,  # (s, s), float64; overwritten
    count: int,
) -> tuple[Tensor, Tensor]:  # (count,), (s, count)
    """The `count` largest eigenvalues in descending order, and their eigenvectors."""
    if gram.device.type == "cpu":
        return _some_eigenvectors(gram, count)
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


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
