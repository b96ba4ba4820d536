"""How a trial grows: which of its settings are judged, and on how much validation data.

A trial of a method that shares work between settings (apgd.sweep) is one run of it, of which many
settings are judged: at its first rung all values of the late parameters, each on a small part of
the validation data; then fewer and fewer of them, further on in the run, on more data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from apgd.errors import InputError
from apgd.methods import Method, Value
from apgd.pareto import pareto_front

Setting: TypeAlias = dict[str, Value]
"""Values of a sweep's growing and late parameters; empty where a method has none."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """What the rungs of a trial are."""

    shares: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    """Share of every task's validation examples, by rung; the last is 1."""
    growth: tuple[float, ...] = (1 / 8, 1 / 2, 1.0)
    """Share of the growing parameter's published value, by rung; the last is 1."""
    narrowing: int = 4
    """Of a rung's settings, one in so many goes on to the next; 1 drops none. With several
    objectives those go on that no other one dominates."""
    reduction: int = 3
    """A trial goes on where it is among the best of so many, as successive halving has it; 1 stops
    none."""

    def __post_init__(self) -> None:
        for name in ("shares", "growth"):
            values = getattr(self, name)
            if list(values) != sorted(values) or not values or values[-1] != 1 or values[0] <= 0:
                raise InputError(f"{name} must grow within (0, 1] up to 1, but got {values}")
        if len(self.shares) != len(self.growth):
            raise InputError(
                f"shares and growth must be as many, but got {len(self.shares)} and "
                f"{len(self.growth)}"
            )
        for name in ("narrowing", "reduction"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but got {getattr(self, name)}")

    def __len__(self) -> int:
        """Number of rungs."""
        return len(self.shares)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A setting with what came out."""

    setting: Setting
    values: tuple[float, ...]
    """The study's objectives; settings are ranked by the first."""


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """One rung of a trial."""

    share: float
    """Share of the validation examples."""
    judged: tuple[Judged, ...]
    best: int
    """Which of them is the best."""
    scores: Mapping[str, float]
    """The best one's scores by cell."""
    seconds: Mapping[str, float]
    """Wall-clock time by step."""
    reads: Mapping[str, int]
    """How often examples were read, by split."""

    @property
    def values(self) -> tuple[float, ...]:
        """The best setting's objectives."""
        return self.judged[self.best].values

    @property
    def setting(self) -> Setting:
        """The best setting."""
        return self.judged[self.best].setting

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "RungResult":
        """What `dataclasses.asdict` made of one."""
        judged = tuple(
            Judged(setting=one["setting"], values=tuple(one["values"])) for one in fields["judged"]
        )
        return cls(**{**fields, "judged": judged})


def settings_at(
    rungs: Rungs,
    method: Method,
    params: Mapping[str, Value],
    earlier: Sequence[RungResult],
    *,
    keep_own: bool,
) -> list[Setting]:
    """The settings that are judged at a trial's next rung, in the order in which a run meets them.

    Args:
        rungs: the plan.
        method: the method.
        params: all its parameters, those of the sweep with their published values.
        earlier: the rungs before.
        keep_own: whether the late parameters' values in `params` are judged at every rung, as they
            must be in the trial of the published settings.
    """
    sweep = method.sweep(method.parse(params))
    if sweep is None:
        return [{}]
    declared = {p.name: p for p in method.params.declared()}
    own: Setting = {name: params[name] for name in sweep.late}
    amount: Setting = {}
    if sweep.growing is not None:
        full = params[sweep.growing]
        if not isinstance(full, int):
            raise InputError(f"{sweep.growing} must be an integer, but got {full!r}")
        least = min(full, max(1, int(declared[sweep.growing].low)))
        amount = {sweep.growing: max(least, round(full * rungs.growth[len(earlier)]))}
    if not earlier:
        values = [sorted({*declared[name].grid, params[name]}, key=_order) for name in sweep.late]
        grid = [dict(zip(sweep.late, chosen, strict=True)) for chosen in product(*values)]
        return [{**amount, **late} for late in grid]
    before = earlier[-1]
    ahead = _ahead(before.judged, rungs.narrowing)
    late_values = [{name: j.setting[name] for name in sweep.late} for j in ahead]
    if keep_own:
        late_values.append(own)
    further = [{**amount, **late} for late in _distinct(late_values)]
    # What is best so far goes on beside what it becomes with more of the growing parameter.
    return _distinct([before.setting, *further])


def _ahead(judged: Sequence[Judged], narrowing: int) -> list[Judged]:
    """The settings that go on: the best by the one objective, or those that none dominates."""
    ranked = sorted(judged, key=lambda one: -one.values[0])
    if len(judged[0].values) == 1 or narrowing == 1:
        return ranked[: -(-len(ranked) // narrowing)]
    front = pareto_front(np.array([one.values for one in ranked]))
    return [one for one, leads in zip(ranked, front, strict=True) if leads]


def _order(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _distinct(settings: Sequence[Setting]) -> list[Setting]:
    found: list[Setting] = []
    for setting in settings:
        if setting not in found:
            found.append(setting)
    return found


def bar(others: Sequence[float], reduction: int) -> float:
    """What a trial's value must reach to go on: asynchronous successive halving's rule.

    That is the best 1 / `reduction` of the others'; where there are fewer than `reduction` of them,
    every trial goes on.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
    section 3.2.

    Args:
        others: other trials' best values at the same rung, stopped ones' too, ascending.
        reduction: η there.
    """
    if reduction == 1 or len(others) < reduction:
        return -math.inf
    return others[-(len(others) // reduction)]
