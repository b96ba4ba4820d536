"""Plug-and-play: APGD's modification vector added to every task vector, before any other rule.

Source: Wei et al., ICML 2025 (arXiv 2501.01230), where Δ is found independently of how the task
vectors are combined afterwards.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, ClassVar, Self

from torch import Tensor

from apgd.errors import InputError
from apgd.evidence import Need
from apgd.methods._apgd import ApgdParams, modification, modification_cost
from apgd.methods._before import before
from apgd.methods._descent import Modifications, growing
from apgd.methods._method import Method, MethodParams, Value
from apgd.shared_work import SharedWork
from apgd.sweep import Sweep, Trajectory
from apgd.task_vectors import Delta
from apgd.transformed import Transformed

SUFFIX = "+apgd"
"""What the name of a method ends in that APGD comes before."""
PLUGS = (SUFFIX.removeprefix("+"),)
"""Steps that methods can take first."""
_PREFIX = "apgd_"
_SEARCHED = ("eta", "iterations")


class PluggedParams(MethodParams):
    """Parameters of a method under their names, and those of APGD before it after `apgd_`."""

    inner_type: ClassVar[type[MethodParams]]

    @property
    def apgd(self) -> ApgdParams:
        """Those of APGD."""
        values: dict[str, Any] = {**_taken_off(self.as_dict())}
        return ApgdParams(**values)

    @property
    def inner(self) -> MethodParams:
        """Those of the method."""
        values = self.as_dict()
        return self.inner_type(**{k: v for k, v in values.items() if not k.startswith(_PREFIX)})

    def resolved(self, rank: int, experts: int) -> Self:
        """Both filled in from the model."""
        filled = put_on(self.apgd.resolved(rank, experts).as_dict())
        return dataclasses.replace(self, **filled, **self.inner.resolved(rank, experts).as_dict())


def put_on(values: Mapping[str, Value]) -> dict[str, Value]:
    """APGD's parameters under the names that they have in a method that it comes before.

    What is not one of APGD's is left out.
    """
    known = {field.name for field in dataclasses.fields(ApgdParams)}
    return {f"{_PREFIX}{name}": value for name, value in values.items() if name in known}


def _taken_off(values: Mapping[str, Value]) -> dict[str, Value]:
    found = values.items()
    return {k.removeprefix(_PREFIX): v for k, v in found if k.startswith(_PREFIX)}


@cache
def plugged(inner: Method) -> Method:
    """The method that `inner` is once APGD has modified the task vectors.

    Raises:
        InputError: where it has APGD in it already.
    """
    if not inner.with_apgd:
        raise InputError(f"APGD can come before methods without it, but {inner.name} has it in it")
    return before(
        inner,
        lambda _vectors, params: partial(_modified, params.apgd),
        lambda shape, experts, params: modification_cost(shape, experts, params.apgd),
        name=inner.name + SUFFIX,
        title=f"{inner.title} + APGD",
        source=f"{inner.source}; after Wei et al., ICML 2025 (arXiv 2501.01230)",
        params=_params_of(inner),
        with_apgd=False,
        sweep=partial(_sweep, inner),
    )


def _sweep(inner: Method, params: PluggedParams) -> Sweep | None:
    if inner.needs is not Need.NOTHING or not growing(params.apgd):
        return None
    return Sweep(
        growing=f"{_PREFIX}iterations",
        late=(),
        bases=f"{_PREFIX}basis_size",
        begin=partial(_Run, inner),
    )


class _Run(Trajectory):
    """The method is applied to task vectors with what Δ has become so far."""

    def __init__(self, inner: Method, shared: SharedWork, params: PluggedParams) -> None:
        self._inner, self._shared, self._params = inner, shared, params
        self._modifications = Modifications(shared, params.apgd)

    def reaches(self, amount: int | None) -> bool:
        """Whether Δ after so many iterations can be had."""
        return self._modifications.reaches(amount)

    def delta(self, amount: int | None, late: Mapping[str, Any]) -> Delta:  # noqa: ARG002
        """θ − θ_0 after so many iterations."""
        found = self._modifications.at(amount)
        modified = Transformed(self._shared.vectors, lambda name, tau: tau + found[name])
        return self._inner.merge(modified, self._params.inner)


def _params_of(inner: Method) -> type[PluggedParams]:
    own = [(f, f.name, f.metadata) for f in dataclasses.fields(inner.params)]
    of_apgd = [(f, _PREFIX + f.name, _metadata(f)) for f in dataclasses.fields(ApgdParams)]
    fields: list[tuple[str, Any, Any]] = [
        (name, f.type, dataclasses.field(default=f.default, metadata=metadata))
        for f, name, metadata in (*own, *of_apgd)
    ]
    return dataclasses.make_dataclass(
        f"{inner.params.__name__}WithApgd",
        fields,
        bases=(PluggedParams,),
        namespace={"inner_type": inner.params},
        frozen=True,
        kw_only=True,
    )


def _metadata(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """What APGD declares about a parameter, under its names here."""
    metadata = dict(field.metadata)
    if field.name not in _SEARCHED:  # only what says how much of Δ is added
        metadata["search"] = None
    if metadata.get("when") is not None:
        name, value = metadata["when"]
        metadata["when"] = (_PREFIX + name, value)
    return metadata


def _modified(params: ApgdParams, _name: str, tau: Tensor) -> Tensor:  # (N, m, n) -> (N, m, n)
    return tau + modification(tau, params).delta
