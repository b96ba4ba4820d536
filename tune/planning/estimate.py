"""Seconds with where they come from."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tune.planning.devices import Device
from tune.planning.work import Work


class Basis(StrEnum):
    """Where a number comes from, from the best to the worst."""

    MEASURED = "measured"
    """In earlier runs of the same suite on the same kind of device."""
    CALCULATED = "calculated"
    """From the number of operations and the device's peak, at a declared utilisation."""
    UNKNOWN = "unknown"
    """Nothing is known, and nothing is made up."""


@dataclass(frozen=True)
class Estimate:
    """How long something takes."""

    seconds: float | None
    """None where it is unknown."""
    basis: Basis

    def __add__(self, other: "Estimate") -> "Estimate":
        if self.seconds is None or other.seconds is None:
            return UNKNOWN
        return Estimate(self.seconds + other.seconds, worst([self.basis, other.basis]))


UNKNOWN = Estimate(None, Basis.UNKNOWN)


def measured(seconds: float) -> Estimate:
    """What earlier runs took."""
    return Estimate(seconds, Basis.MEASURED)


def calculated(work: Work | None, device: Device | None, share: float) -> Estimate:
    """What work takes on a part of a device; unknown where one of them is.

    Args:
        work: operations and bytes.
        device: what computes.
        share: the part of it that one worker has.
    """
    if work is None or device is None:
        return UNKNOWN
    return Estimate(work.seconds(device, share), Basis.CALCULATED)


def worst(bases: Iterable[Basis]) -> Basis:
    """The least certain of them; measured where there are none."""
    return max(bases, key=list(Basis).index, default=Basis.MEASURED)
