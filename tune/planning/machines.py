"""The machines that a plan is for: described, running, or this one."""

import re
from dataclasses import dataclass

from apgd.errors import InputError
from tune.cluster import Cluster, at_most, plan, plural
from tune.planning.devices import DEVICES, HEAD, Device, Price, processor_device

_FORM = re.compile(r"(?P<count>\d+)x(?P<kind>[A-Za-z0-9]+)(?::(?P<cpus>\d+))?")


@dataclass(frozen=True)
class Machines:
    """Machines of one kind."""

    count: int
    """How many there are, a head of its own not counted."""
    device: Device | None
    """What each has; None where it is of no known kind."""
    gpus_each: int
    cpus_each: int
    head: Price | None
    """What a head of its own costs; None where one of the machines is the head."""
    joined: bool
    """Whether it is (or would be) a cluster that is joined, and no Ray started for the run."""
    described: str
    """Where it is from, for people."""
    device_name: str
    """What the device is called, for example `NVIDIA L4` or `AMD EPYC`."""
    free_bytes: int | None = None
    """Free memory of its GPUs where it was measured."""
    rented: bool = False
    """Whether they are machines of the price list; of those that run already only their user knows
    what they cost."""

    def cluster(self, most_workers: int, wanted_gpus: int | None = None) -> Cluster:
        """How Ray is cut into workers there."""
        extra = HEAD_CPUS if self.head is not None else 0
        return plan(
            self.count + (self.head is not None),
            self.count * self.cpus_each + extra,
            at_most(self.gpus, wanted_gpus),
            self.joined,
            most_workers,
        )

    @property
    def gpus(self) -> int:
        """GPUs of all of them."""
        return self.count * self.gpus_each

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of one GPU that can be used; None where there is none, or it is not known."""
        if self.free_bytes is not None or self.device is None:
            return self.free_bytes
        return self.device.memory

    def __str__(self) -> str:
        what = f"{plural(self.gpus_each, self.device_name)}, " if self.gpus_each else ""
        each = f"{what}{plural(self.cpus_each, 'CPU')}"
        head = "" if self.head is None else f", and a head ({self.head.instance})"
        return f"{self.described}: {plural(self.count, 'machine')} with {each} each{head}"


HEAD_CPUS = 4
_MOST = 10_000


def described(text: str) -> Machines:
    """Machines from a description such as `8xL4`, `8x4090` or `2xcpu:16`.

    Raises:
        InputError: for anything else.
    """
    match = _FORM.fullmatch(text.strip())
    kinds = ", ".join(device.name for device in DEVICES.values())
    known = f"COUNTxGPU with one of {kinds}, or COUNTxcpu:CPUS"
    if match is None or not 1 <= int(match["count"]) <= _MOST:
        raise InputError(
            f"machines must be described as {known}, at most {_MOST} of them, but got {text!r}"
        )
    count, kind = int(match["count"]), match["kind"].lower()
    if kind == "cpu":
        if match["cpus"] is None or int(match["cpus"]) < 1:
            raise InputError(
                f"machines without a GPU must say how many CPUs each has, for example 2xcpu:16, "
                f"but got {text!r}"
            )
        cpus = int(match["cpus"])
        device = processor_device(cpus)
        return Machines(
            count, device, 0, cpus, None, True, f"described as {text}", "cpu", rented=True
        )
    kind = kind.removeprefix("rtx")
    if kind not in DEVICES or match["cpus"] is not None:
        raise InputError(f"machines must be described as {known}, but got {text!r}")
    device = DEVICES[kind]
    # Rented GPU machines get a head without one; of one's own workstations, one is the head.
    head = HEAD if device.price is not None else None
    return Machines(
        count, device, 1, device.cpus, head, True, f"described as {text}", device.name, rented=True
    )


def kind_of(full_name: str, cpus: int) -> Device | None:
    """The kind of a device from what its driver or processor is called.

    Args:
        full_name: for example `NVIDIA L4`, or a processor's name.
        cpus: of its machine.
    """
    for device in DEVICES.values():
        if device.is_named(full_name):
            return device
    return None if "nvidia" in full_name.lower() else processor_device(cpus)
