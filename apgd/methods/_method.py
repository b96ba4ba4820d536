"""The shape of a merge method, and how its parameters are declared."""

import dataclasses
import math
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.errors import InputError
from apgd.evidence import NO_EVIDENCE, Evidence, Need
from apgd.projective import task_norms
from apgd.summary import Detail, LayerSummary
from apgd.sweep import Sweep
from apgd.task_vectors import Delta, TaskVectors

Value: TypeAlias = float | int | str | None
"""Value of a parameter; None where it follows from the model."""


class Limit(Enum):
    """A bound that depends on the model."""

    RANK = "r"
    """The smallest r = min(m, n) over the merged matrices."""
    EXPERTS = "N"
    """The number of experts."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method: its meaning, its range, and where a search looks."""

    name: str
    kind: type[int] | type[float] | type[str]
    default: Value
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
    choices: tuple[str, ...] = ()
    """The values of a parameter that is a choice and not a number."""
    when: tuple[str, Value] | None = None
    """It only counts where another parameter has this value, and is only searched there."""
    grid: tuple[float, ...] = ()
    """Values that stand for the search's range where some have to; spread over it if not named."""

    def points(self, count: int, low: float, high: float) -> tuple[float | int, ...]:
        """Values that stand for the search's range: the named ones, or `count` spread over it.

        Args:
            count: how many, of those that are not named; fewer where integers coincide.
            low: lower end of the range.
            high: upper end of the range.
        """
        if self.grid:
            return tuple(value for value in self.grid if low <= value <= high)
        steps = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        if self.log:
            spread = [low * (high / low) ** step for step in steps]
        else:
            spread = [low + (high - low) * step for step in steps]
        if self.kind is int:
            return tuple(dict.fromkeys(round(value) for value in spread))
        return tuple(min(high, max(low, value)) for value in spread)

    @property
    def range_text(self) -> str:
        """The range as people write it, for example `(0, 1]` or `adam, exact`."""
        if self.choices:
            return ", ".join(self.choices)
        high = f"{self.high.value}]" if isinstance(self.high, Limit) else _bound(self.high)
        return f"{'(' if self.open_low else '['}{self.low:g}, {high}"

    @property
    def search_text(self) -> str:
        """Where a search looks, as people write it; a dash where it does not."""
        if self.search is None:
            return "–"
        low, high = self.search
        ends = f"{low:g} to {high.value if isinstance(high, Limit) else f'{high:g}'}"
        return f"{ends}, log" if self.log else ends

    def check(self, value: object) -> None:
        """Raise InputError unless `value` has the right type and lies in the range."""
        if value is None and self.default is None:
            return
        if self.choices:
            if value not in self.choices:
                raise InputError(f"{self.name} must be one of {self.range_text}, but got {value!r}")
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
    when: tuple[str, Value] | None = None,
    grid: tuple[float, ...] = (),
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
        when: another parameter and the value of it with which alone this one counts.
        grid: values that stand for the range where some have to.
    """
    declaration = {
        "meaning": meaning,
        "low": low,
        "high": high,
        "open_low": open_low,
        "search": search,
        "log": log,
        "when": when,
        "grid": grid,
    }
    return dataclasses.field(default=default, metadata=declaration)


def choice_parameter(default: str, choices: tuple[str, ...], meaning: str) -> Any:
    """Declare a field whose values are names; a search leaves it alone."""
    declaration = {
        "meaning": meaning,
        "low": 0,
        "high": 0,
        "open_low": False,
        "search": None,
        "log": False,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=declaration)


def coefficient_parameter(default: float, of: str, search: tuple[float, float]) -> Any:
    """Declare the merging coefficient of a method.

    Args:
        default: the published value.
        of: what it multiplies.
        search: range in which a search looks, on a logarithmic scale.
    """
    return parameter(default, f"merging coefficient of {of}", low=0, search=search, log=True)


def learning_rate_parameter(
    default: float,
    meaning: str,
    search: tuple[float, float],
    when: tuple[str, Value] | None = None,
) -> Any:
    """Declare a learning rate, which is searched on a logarithmic scale.

    Args:
        default: the published value.
        meaning: whose it is, in one line.
        search: range in which a search looks.
        when: as in `parameter`.
    """
    return parameter(default, meaning, low=0, open_low=True, search=search, log=True, when=when)


def keep_ratio_parameter(default: float) -> Any:
    """Declare the keep ratio of a method that trims task vectors by magnitude."""
    return parameter(
        default,
        "share of each task vector's entries that is kept, largest magnitudes first",
        low=0,
        high=1,
        open_low=True,
        search=(0.05, 1.0),
        grid=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
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
    @cache
    def declared(cls) -> tuple[Parameter, ...]:
        """The parameters, in the order of their declaration."""
        hints = typing.get_type_hints(cls)
        return tuple(
            Parameter(
                name=declaration.name,
                kind=_type(hints[declaration.name]),
                default=typing.cast(Value, declaration.default),
                **declaration.metadata,
            )
            for declaration in dataclasses.fields(cls)
        )

    def as_dict(self) -> dict[str, Value]:
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
        self._check_limit(Limit.RANK, rank, "the rank of the merged matrices")

    def check_experts(self, experts: int) -> None:
        """Raise InputError where a value bounded by the number of experts exceeds it.

        Args:
            experts: N, the number of experts.
        """
        self._check_limit(Limit.EXPERTS, experts, "the number of experts")

    def _check_limit(self, limit: Limit, most: int, what: str) -> None:
        for declared in self.declared():
            value = getattr(self, declared.name)
            if declared.high is limit and value is not None and value > most:
                raise InputError(
                    f"{declared.name} must not exceed {what}, which is {most}, but got {value}"
                )


def _type(hint: Any) -> type[int] | type[float] | type[str]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return int if int in options else str if str in options else float


@dataclass(frozen=True)
class Combined:
    """What a method makes of one matrix, with what it has to tell about it."""

    delta: Tensor
    """θ − θ_0, (m, n) float32."""
    details: Mapping[str, Detail] = field(default_factory=dict)
    """Figures for the summary, for example the coefficients."""


@dataclass(frozen=True)
class MergedLayer:
    """One merged matrix."""

    delta: Tensor
    """θ − θ_0, (m, n) float32, on the CPU."""
    summary: LayerSummary


def read_once(shape: tuple[int, int], experts: int, _params: Any) -> Cost:
    """The work of a method that reads the task vectors and writes their combination."""
    return Cost(bytes=4 * math.prod(shape) * (experts + 1))


def _nothing(_vectors: TaskVectors, _params: Any, _evidence: Evidence) -> None:
    """What most methods know about the whole model before they merge its matrices."""


def no_sweep(_params: Any) -> None:
    """What most methods share between their settings."""


def _as_they_are(vectors: TaskVectors, _params: Any) -> TaskVectors:
    """The task vectors that most methods work on."""
    return vectors


def six_copies(shape: tuple[int, int], experts: int) -> int:
    """Memory in bytes for N + 6 times a matrix of this shape in float32."""
    return 4 * math.prod(shape) * (experts + 6)


@dataclass(frozen=True, kw_only=True, eq=False)
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
    combine: Callable[[Tensor, Any, Any], Tensor | Combined]
    """Pure function of one matrix: task vectors (N, m, n), parameters, and what `prepare` found, to
    θ − θ_0 (m, n). It is called for several matrices at a time, also in other processes."""
    needs: Need = Need.NOTHING
    """What it needs besides base and experts."""
    transform: Callable[[TaskVectors, Any], TaskVectors] = _as_they_are
    """The task vectors that it works on, where these are not the experts' own."""
    prepare: Callable[[TaskVectors, Any, Evidence], Any] = _nothing
    """What matrices need to know about the whole model, such as thresholds; small and picklable.
    Of a mapping by the matrices' names, `combine` gets its matrix's entry."""
    passes: int = 1
    """How often the task vectors are read, by all three together."""
    holds: Callable[[tuple[int, int], int], int] = six_copies
    """Memory in bytes that is enough to combine one matrix, from its shape and the number of
    experts, its task vectors included."""
    cost: Callable[[tuple[int, int], int, Any], Cost] = read_once
    """The work of one matrix, from its shape, the number of experts and the parameters."""
    quick: Mapping[str, Value] = field(default_factory=dict)
    """Settings with which it is done at once, whatever comes of it: for smoke runs."""
    with_apgd: bool = True
    """Whether APGD's modification vector can be added to its task vectors first (`--plug apgd`)."""
    sweep: Callable[[Any], Sweep | None] = no_sweep
    """Which parameters need no work of their own, with these values of the others; a search then
    scores several of their values at once."""

    def parse(self, values: Mapping[str, Value]) -> MethodParams:
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

    def check(
        self, vectors: TaskVectors, params: MethodParams, evidence: Evidence = NO_EVIDENCE
    ) -> None:
        """Raise InputError where parameters, task vectors and evidence do not go together.

        That is where a parameter exceeds what the model allows, a merged parameter is not a
        matrix, or the method needs what is not there.
        """
        if not evidence.meets(self.needs):
            raise InputError(
                f"method {self.name} needs {self.needs}, but got none; give the suite whose tasks "
                f"the experts were trained on (--suite), or choose a data-free method"
            )
        for name in vectors.names:
            if len(vectors.shape(name)) != 2:
                raise InputError(
                    f"merged parameters must be matrices, but {name} has shape "
                    f"{vectors.shape(name)}; select only two-dimensional ones"
                )
        params.check_rank(vectors.smallest_rank)
        params.check_experts(len(vectors))

    def working_bytes(self, vectors: TaskVectors, name: str) -> int:
        """Memory in bytes that is enough to read one matrix's task vectors and combine them."""
        rows, columns = vectors.shape(name)
        return max(vectors.working_bytes(name), self.holds((rows, columns), len(vectors)))

    def layers(
        self, vectors: TaskVectors, params: MethodParams, prepared: Any
    ) -> Iterator[tuple[str, MergedLayer]]:
        """Every merged matrix, as it is done.

        Args:
            vectors: what `transform` made.
            params: the parameters.
            prepared: what `prepare` found.
        """
        return vectors.map(
            partial(_merge_layer, self, params, prepared), partial(self.working_bytes, vectors)
        )

    def merge(
        self, vectors: TaskVectors, params: MethodParams, evidence: Evidence = NO_EVIDENCE
    ) -> Delta:
        """θ − θ_0 for the merged parameters.

        Raises:
            InputError: as `check` does.
        """
        self.check(vectors, params, evidence)
        vectors = self.transform(vectors, params)
        layers = self.layers(vectors, params, self.prepare(vectors, params, evidence))
        return {name: layer.delta for name, layer in sorted(layers, key=lambda item: item[0])}


def _merge_layer(
    method: Method, params: MethodParams, prepared: Any, name: str, tau: Tensor
) -> MergedLayer:
    started = time.perf_counter()
    known = prepared[name] if isinstance(prepared, Mapping) else prepared
    combined = method.combine(tau, params, known)
    if isinstance(combined, Tensor):
        combined = Combined(combined)
    delta = combined.delta.to("cpu", torch.float32)
    summary = LayerSummary(
        name=name,
        shape=(tau.shape[1], tau.shape[2]),
        task_norms=tuple(task_norms(tau).tolist()),
        delta_norm=float(torch.linalg.vector_norm(delta, dtype=torch.float64)),
        seconds=time.perf_counter() - started,
        details=dict(combined.details),
    )
    return MergedLayer(delta, summary)
