"""What kinds of machines can do, and what they cost: facts, with where they are from.

Peaks are dense figures of the makers' data sheets (NVIDIA: A10G as AWS lists it for G5, L4, L40S,
RTX 4090 with float32 accumulation, A100 40 GB and H100 SXM). On-demand prices are those of AWS for
Linux in us-east-1 as listed in June 2026; spot prices are the medians over that region's zones in
the SkyPilot catalogue (catalogs/v8/aws/vms.csv at 00148f2), and move from hour to hour. The
head and the machines with an L4 or an A10G are those that cluster.yaml rents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PRICES = "AWS us-east-1, Linux, June 2026; spot: median over zones, moves from hour to hour"
"""What prices are printed with."""
UTILISATION = 0.35
"""Share of a peak that is taken to be reached where nothing was measured; declared, not measured.
Training of transformers of this size usually lies between 0.25 and 0.5."""
_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Price:
    """What a machine costs, in dollars per hour."""

    instance: str
    """Its name at the provider; empty where the price was given by the user."""
    on_demand: float
    spot: float | None
    """None where it is not known."""


@dataclass(frozen=True)
class Device:
    """A kind of computing device."""

    name: str
    """As it is written in a description, for example `L4`."""
    bfloat16_flops: float
    """Peak of matrix products with float32 accumulation, per second."""
    float32_flops: float
    """Peak without TF32, per second."""
    bandwidth: float
    """Bytes per second between memory and processor."""
    memory: int | None
    """Bytes of a GPU's own memory; None for a processor."""
    cpus: int
    """Virtual CPUs of the machine that it is in."""
    price: Price | None
    """Of a machine with one of it; None where nobody rents it out at a fixed price."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.memory is not None

    def is_named(self, full_name: str) -> bool:
        """Whether a driver's name of a device is this kind's, for example `NVIDIA L4`."""
        return self.name.lower() in full_name.lower().replace("-", " ").split()


HEAD = Price("m6i.xlarge", 0.192, None)
"""The head of a cluster, a machine without a GPU; it is not run on spot."""

IDLE_MINUTES = 10
"""So long after its last work a rented machine is given back: `idle_timeout_minutes` there."""

DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name.lower(): device
        for device in (
            Device(
                "A10G", 70 * _TERA, 35 * _TERA, 600 * _GIGA, 24 * 10**9, 8,
                Price("g5.2xlarge", 1.212, 0.504),
            ),
            Device(
                "L4", 121 * _TERA, 30.3 * _TERA, 300 * _GIGA, 24 * 10**9, 8,
                Price("g6.2xlarge", 0.9776, 0.476),
            ),
            Device(
                "L40S", 362 * _TERA, 91.6 * _TERA, 864 * _GIGA, 48 * 10**9, 4,
                Price("g6e.xlarge", 1.861, None),
            ),
            Device("4090", 165 * _TERA, 82.6 * _TERA, 1008 * _GIGA, 24 * 10**9, 16, None),
            Device("A100", 312 * _TERA, 19.5 * _TERA, 1555 * _GIGA, 40 * 10**9, 12, None),
            Device("H100", 989 * _TERA, 66.9 * _TERA, 3350 * _GIGA, 80 * 10**9, 24, None),
        )
    }
)  # fmt: skip
"""GPUs by name in small letters."""

_CORE_FLOPS = 40 * _GIGA
_CORE_BANDWIDTH = 5 * _GIGA
_CPU_PRICES = {
    count: Price(f"c7i.{size}", round(0.044625 * count, 4), None)
    for size, count in (
        *(("xlarge", 4), ("2xlarge", 8), ("4xlarge", 16), ("8xlarge", 32)),
        *(("12xlarge", 48), ("16xlarge", 64), ("24xlarge", 96), ("48xlarge", 192)),
    )
}


def processor_device(cpus: int) -> Device:
    """A machine without a GPU: 40 GFlop/s and 5 GB/s for each virtual CPU, declared.

    Args:
        cpus: virtual CPUs; where AWS has a machine with so many (c7i), its price is known.
    """
    flops = _CORE_FLOPS * cpus
    bandwidth = _CORE_BANDWIDTH * cpus
    return Device("cpu", flops, flops, bandwidth, None, cpus, _CPU_PRICES.get(cpus))
