"""How much work a computation is, to be held against what a machine can do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Work in the two currencies that a machine's rates are measured in."""

    flops: float = 0.0
    """Floating-point operations, as many as would take as long in float32 matrix products."""
    bytes: float = 0.0
    """Bytes moved between memory and processor."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(times * self.flops, times * self.bytes)
