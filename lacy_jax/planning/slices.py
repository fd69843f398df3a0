"""Slices of TPUs by name, as Google Cloud sells them, and the roofline of their chips."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from lacy_jax.errors import ConfigError
from lacy_jax.training.chips import CHIPS, TpuChip

# The chips for which slices can be planned.
TPUS: dict[str, TpuChip] = {chip.name: chip for chip in CHIPS if isinstance(chip, TpuChip)}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host of a slice on Google Kubernetes Engine.

    Attributes:
      name: machine type. accelerator: label of its nodes. chips: per host.
      workload_policy: a node pool of several hosts is placed by a workload policy instead of by its topology.
    """

    name: str
    accelerator: str
    chips: int
    workload_policy: bool = False


# Label of the nodes, and the machine type without its number of chips (cloud.google.com/kubernetes-engine/docs/concepts/tpus).
_MACHINES = {
    "v4": ("tpu-v4-podslice", "ct4p-hightpu"),
    "v5e": ("tpu-v5-lite-podslice", "ct5lp-hightpu"),
    "v5p": ("tpu-v5p-slice", "ct5p-hightpu"),
    "v6e": ("tpu-v6e-slice", "ct6e-standard"),
    "tpu7x": ("tpu7x", "tpu7x-standard"),
}
_PER_HOST = 4
_CUBE = 64  # Chips in a cube; larger slices of three dimensions are cubes joined by optical switches.
_SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SHAPES_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # Slices smaller than a cube.


@functools.cache
def shapes(chip: TpuChip) -> dict[int, tuple[int, ...]]:
    """The slices of a chip that Cloud sells, by number of chips; of several shapes, the one nearest to a cube.

    In slices of three dimensions with more than 32 chips, the dimensions are multiples of 4 in ascending order.
    """
    if chip.dimensions == 2:
        return {math.prod(shape): shape for shape in _SHAPES_2D}
    found: dict[int, tuple[int, ...]] = {math.prod(shape): shape for shape in _SHAPES_3D}
    most = chip.largest // _CUBE
    for a in range(1, most + 1):
        for b in range(a, most // a + 1):
            for c in range(b, most // (a * b) + 1):
                count, shape = _CUBE * a * b * c, (4 * a, 4 * b, 4 * c)
                if count not in found or sum(shape) < sum(found[count]):
                    found[count] = shape
    return dict(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices.

    Attributes:
      chip: what they are made of.
      shape: torus of one slice.
      slices: how many; they are joined by the data-centre network.
    """

    chip: TpuChip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices of all slices, as JAX shows them."""
        return self.chips * self.chip.devices

    @property
    def layout(self) -> str:
        """Name of one slice as the compiler reads it: "v5e:4x4"."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def machine(self) -> Machine:
        """The kind of its hosts."""
        accelerator, name = _MACHINES[self.chip.name]
        chips = min(_PER_HOST, math.prod(self.shape))
        return Machine(f"{name}-{chips}t", accelerator, chips, self.chip.name == "tpu7x")

    @property
    def hosts(self) -> int:
        """Hosts of one slice."""
        return math.prod(self.shape) // self.machine.chips

    def __str__(self) -> str:
        return self.layout + (f" x {self.slices} slices" if self.slices > 1 else "")


def parse_topology(text: str, slices: int = 1, option: str = "--topology") -> Topology:
    """Read "v5e:4x4", or Cloud's accelerator type "v5e-16" (also "v5litepod-16"; v4, v5p and tpu7x count cores there).

    Args:
      text: name of one slice.
      slices: number of such slices.
      option: the option that gave `text`, for messages.

    Raises:
      ConfigError: an unknown chip, a shape of the wrong dimension or size, fewer than one slice, or several of one host.
    """
    found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)+)|-(\d+))", text.strip().lower().replace("v5litepod", "v5e"))
    if not found or found[1] not in TPUS:
        raise ConfigError(
            f"{option}={text}: expected a chip of {', '.join(TPUS)} and a shape, such as v5e:4x4, v5p:4x4x4 or v6e-64"
        )
    if slices < 1:
        raise ConfigError(f"--slices={slices}: must be at least 1")
    chip = TPUS[found[1]]
    if found[3]:
        sizes = shapes(chip)
        count = int(found[3]) // chip.cores
        if count not in sizes or int(found[3]) % chip.cores:
            near = sorted(sorted(sizes, key=lambda n: abs(n - count))[:9])
            sold = ", ".join(f"{chip.name}-{n * chip.cores}" for n in near)
            raise ConfigError(f"{option}={text}: no such slice; known: {sold}; or give a shape")
        return _checked(Topology(chip, sizes[count], slices), f"{option}={text}")
    shape = tuple(int(n) for n in found[2].split("x"))
    example = "4x4" if chip.dimensions == 2 else "2x2x4"
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise ConfigError(
            f"{option}={text}: a slice of {chip.name} has {chip.dimensions} dimensions, such as {chip.name}:{example}"
        )
    if math.prod(shape) > chip.largest:
        raise ConfigError(
            f"{option}={text}: {math.prod(shape)} chips, but the largest {chip.name} slice has {chip.largest}; "
            "use several with --slices"
        )
    return _checked(Topology(chip, shape, slices), f"{option}={text}")


def _checked(place: Topology, given: str) -> Topology:
    if place.slices > 1 and place.hosts == 1:
        raise ConfigError(
            f"{given} --slices={place.slices}: slices of one host cannot be joined (multislice); take larger ones"
        )
    return place


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least time of a step, in seconds, if each resource were the only limit and perfectly used.

    Attributes:
      compute: model FLOPs and the recomputed ones at the chip's peak.
      memory: HBM traffic at full bandwidth.
      ici, dcn: the traffic that each chip sends within the slice, and to other slices.
    """

    compute: float
    memory: float
    ici: float
    dcn: float

    @property
    def step_s(self) -> float:
        """The slowest of them, as if everything overlapped. A real step takes longer."""
        return max(self.compute, self.memory, self.ici, self.dcn)

    @property
    def limit(self) -> str:
        """Which resource that is."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(
    chip: TpuChip,
    flops: float,
    hbm_bytes: float,
    ici_s: float,
    dcn_bytes: float,
    quantized: tuple[float, str] = (0.0, ""),
) -> Roofline:
    """The roofline of one device's share of a step. FLOPs and bytes are per device; `ici_s` comes from
    `lacy_jax.planning.links`; the FLOPs in 8 bits, and their kind, are part of all FLOPs."""
    in_8_bits, numbers = quantized
    return Roofline(
        compute=(flops - in_8_bits) / chip.peak_flops + in_8_bits / (chip.peak(numbers) or chip.peak_flops),
        memory=hbm_bytes / chip.hbm_bytes_per_s,
        ici=ici_s,
        dcn=dcn_bytes / chip.dcn_bytes_per_s,
    )
