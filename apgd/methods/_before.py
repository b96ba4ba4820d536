"""A method on task vectors that something was done to first."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from apgd.cost import Cost
from apgd.evidence import Evidence
from apgd.methods._method import Combined, Method, MethodParams, no_sweep
from apgd.sweep import Sweep
from apgd.task_vectors import TaskVectors
from apgd.transformed import Change, Transformed, changing_bytes


class TwoStepParams(Protocol):
    """Parameters of both steps."""

    @property
    def inner(self) -> MethodParams:
        """Those of the method that comes second."""


def before(
    inner: Method,
    change: Callable[[TaskVectors, Any], Change],
    change_cost: Callable[[tuple[int, int], int, Any], Cost],
    *,
    name: str,
    title: str,
    source: str,
    params: type[MethodParams],
    with_apgd: bool = True,
    sweep: Callable[[Any], Sweep | None] = no_sweep,
) -> Method:
    """The method that `inner` is once the task vectors have been changed.

    Args:
        inner: what comes second.
        change: what is done to the task vectors of a matrix, from all of them and the parameters.
        change_cost: the work of doing it once, as in `Method.cost`.
        name: of the whole, as in `Method`.
        title: likewise.
        source: likewise.
        params: likewise; they have `inner` (see `TwoStepParams`).
        with_apgd: likewise.
        sweep: likewise.
    """
    return Method(
        name=name,
        title=title,
        source=source,
        params=params,
        needs=inner.needs,
        combine=partial(_combine, inner),
        transform=partial(_transform, inner, change),
        prepare=partial(_prepare, inner),
        passes=inner.passes,
        holds=partial(_holds, inner),
        cost=partial(_cost, inner, change_cost),
        quick=inner.quick,
        with_apgd=with_apgd,
        sweep=sweep,
    )


def _transform(
    inner: Method,
    change: Callable[[TaskVectors, Any], Change],
    vectors: TaskVectors,
    params: TwoStepParams,
) -> TaskVectors:
    return inner.transform(Transformed(vectors, change(vectors, params)), params.inner)


def _prepare(inner: Method, vectors: TaskVectors, params: TwoStepParams, known: Evidence) -> Any:
    return inner.prepare(vectors, params.inner, known)


def _combine(inner: Method, tau: Tensor, params: TwoStepParams, prepared: Any) -> Tensor | Combined:
    return inner.combine(tau, params.inner, prepared)


def _holds(inner: Method, shape: tuple[int, int], experts: int) -> int:
    return max(inner.holds(shape, experts), changing_bytes(shape, experts))


def _cost(
    inner: Method,
    change_cost: Callable[[tuple[int, int], int, Any], Cost],
    shape: tuple[int, int],
    experts: int,
    params: TwoStepParams,
) -> Cost:
    # Where task vectors are not kept, they are changed anew for every pass.
    changes = change_cost(shape, experts, params) * inner.passes
    return inner.cost(shape, experts, params.inner) + changes
