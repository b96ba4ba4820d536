"""Merges whose settings share their work: one run scores many of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apgd.shared_work import SharedWork
from apgd.task_vectors import Delta


class Trajectory(ABC):
    """A merge under way, which hands out the results of several settings."""

    @abstractmethod
    def reaches(self, amount: int | None) -> bool:
        """Whether it can hand out results at this amount: one further on, or one asked for before.

        Args:
            amount: value of the sweep's growing parameter; None where it has none.
        """

    @abstractmethod
    def delta(self, amount: int | None, late: Mapping[str, Any]) -> Delta:
        """θ − θ_0 at a setting, on any device.

        Args:
            amount: as in `reaches`.
            late: values of the sweep's late parameters, by name.

        Raises:
            ValueError: for an amount that it does not reach any more.
        """


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which of a method's parameters need no work of their own."""

    growing: str | None
    """The parameter whose larger values continue what smaller ones did; None without one."""
    late: tuple[str, ...]
    """Parameters that are applied last."""
    bases: str
    """The parameter that says how many singular vectors of each task vector are used."""
    begin: Callable[[SharedWork, Any], Trajectory]
    """Begins a merge with the other parameters."""
