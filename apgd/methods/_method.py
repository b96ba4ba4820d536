"""The shape of a merge method, and how its parameters are declared."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from apgd.errors import InputError
from apgd.task_vectors import Delta, TaskVectors


class Limit(Enum):
    """A bound that depends on the model."""

    RANK = "rank"
    """The smallest r = min(m, n) over the merged matrices."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method: its meaning, its range, and where a search looks."""

    name: str
    kind: type[int] | type[float]
    default: float | int | None
    """The published value; None where it follows from the model, as `meaning` says."""
    meaning: str
    low: float
    high: float | Limit
    open_low: bool
    """Whether `low` itself is excluded."""
    search: tuple[float, float | Limit] | None
    """The search's range, None for a parameter that is not searched."""
    log: bool
    """Whether the search's range is logarithmic."""

    @property
    def range_text(self) -> str:
        """The range as people write it, for example `(0, 1]`."""
        high = "r]" if isinstance(self.high, Limit) else _bound(self.high)
        return f"{'(' if self.open_low else '['}{self.low:g}, {high}"

    def check(self, value: object) -> None:
        """Raise InputError unless `value` has the right type and lies in the range."""
        if value is None and self.default is None:
            return
        wanted = "an integer" if self.kind is int else "a number"
        numeric = isinstance(value, int if self.kind is int else (int, float))
        if not numeric or isinstance(value, bool):
            raise InputError(f"{self.name} must be {wanted}, but got {value!r}")
        number = float(typing.cast(float, value))
        below = number <= self.low if self.open_low else number < self.low
        above = not isinstance(self.high, Limit) and number > self.high
        if not math.isfinite(number) or below or above:
            raise InputError(f"{self.name} must lie in {self.range_text}, but got {value!r}")


def _bound(high: float) -> str:
    return "∞)" if math.isinf(high) else f"{high:g}]"


def parameter(
    default: float | int | None,
    meaning: str,
    *,
    low: float,
    high: float | Limit = math.inf,
    open_low: bool = False,
    search: tuple[float, float | Limit] | None = None,
    log: bool = False,
) -> Any:
    """Declare a field of a method's parameters, all of it in one place.

    Args:
        default: the published value; None where it follows from the model, as `meaning` says.
        meaning: one line for the command line and the documentation.
        low: smallest value.
        high: largest value.
        open_low: whether `low` itself is excluded.
        search: range in which a search looks; None keeps the parameter out of it.
        log: whether the search's range is logarithmic.
    """
    declaration = {
        "meaning": meaning,
        "low": low,
        "high": high,
        "open_low": open_low,
        "search": search,
        "log": log,
    }
    return dataclasses.field(default=default, metadata=declaration)


def keep_ratio_parameter(default: float) -> Any:
    """Declare the keep ratio of a method that trims task vectors by magnitude."""
    return parameter(
        default,
        "share of each task vector's entries that is kept, largest magnitudes first",
        low=0,
        high=1,
        open_low=True,
        search=(0.05, 1.0),
    )


@dataclass(frozen=True, kw_only=True)
class MethodParams:
    """Parameters of a method; the fields of a subclass are declared with `parameter`.

    Raises:
        InputError: on construction, where a value is of the wrong type or outside its range.
    """

    def __post_init__(self) -> None:
        for declared in self.declared():
            declared.check(getattr(self, declared.name))

    @classmethod
    def declared(cls) -> tuple[Parameter, ...]:
        """The parameters, in the order of their declaration."""
        hints = typing.get_type_hints(cls)
        return tuple(
            Parameter(
                name=field.name,
                kind=_number_type(hints[field.name]),
                default=typing.cast(float | int | None, field.default),
                **field.metadata,
            )
            for field in dataclasses.fields(cls)
        )

    def as_dict(self) -> dict[str, float | int | None]:
        """Names and values."""
        return dataclasses.asdict(self)

    def resolved(self, rank: int, experts: int) -> Self:  # noqa: ARG002 - for subclasses
        """The same parameters with everything filled in that follows from the model.

        Args:
            rank: the smallest min(m, n) over the merged matrices.
            experts: N, the number of experts.
        """
        return self

    def check_rank(self, rank: int) -> None:
        """Raise InputError where a value bounded by the rank exceeds it.

        Args:
            rank: the smallest min(m, n) over the merged matrices.
        """
        for declared in self.declared():
            value = getattr(self, declared.name)
            if declared.high is Limit.RANK and value is not None and value > rank:
                raise InputError(
                    f"{declared.name} must not exceed the rank of the merged matrices, "
                    f"which is {rank}, but got {value}"
                )


def _number_type(hint: Any) -> type[int] | type[float]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return int if int in options else float


@dataclass(frozen=True, kw_only=True)
class Method:
    """A merge method."""

    name: str
    """Identifier on the command line."""
    title: str
    """Name for people."""
    source: str
    """Paper and section."""
    params: type[MethodParams]
    """Its parameters."""
    combine: Callable[[TaskVectors, Any], Delta]
    """Pure function: task vectors and parameters to θ − θ_0."""

    def parse(self, values: Mapping[str, float | int | None]) -> MethodParams:
        """Parameters from names and values; those left out have their published value.

        Raises:
            InputError: for an unknown name, or a value outside its range.
        """
        known = [declared.name for declared in self.params.declared()]
        for name in values:
            if name not in known:
                listed = ", ".join(known) if known else "it has none"
                raise InputError(
                    f"unknown parameter {name!r} of method {self.name}; known are: {listed}"
                )
        return self.params(**values)

    def merge(self, vectors: TaskVectors, params: MethodParams) -> Delta:
        """θ − θ_0 for the merged parameters.

        Raises:
            InputError: where a parameter exceeds what the model allows, or a merged parameter is
                not a matrix.
        """
        for name in vectors.names:
            if len(vectors.shape(name)) != 2:
                raise InputError(
                    f"merged parameters must be matrices, but {name} has shape "
                    f"{vectors.shape(name)}; select only two-dimensional ones"
                )
        params.check_rank(vectors.smallest_rank)
        return self.combine(vectors, params)
