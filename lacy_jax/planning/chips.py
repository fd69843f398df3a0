"""TPU chips as Google states them publicly, slices of them by name, and the roofline that follows.

Figures are those of the Cloud TPU pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" (docs.cloud.google.com/tpu/docs). Link
bandwidth is the sum of a chip's links in ONE direction: what it can send while it receives as much.
"""

from __future__ import annotations

import dataclasses
import math
import re

from lacy_jax.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX shows as one device: a chip, or each of the two halves of a TPU7x.

    Attributes:
      name: as in topologies, such as "v5e".
      peak_flops: dense bfloat16 FLOP/s. Matmuls of float32 arrays run at this rate too, because at JAX's default
        precision a TPU multiplies them in bfloat16.
      hbm_bytes: memory a program may use, as libtpu 0.0.52 states it when one needs more: 16, 32 or 95 GiB less a reserve.
      hbm_bytes_per_s: its bandwidth.
      ici_bytes_per_s: to other chips of the slice, all links together, one direction.
      dcn_bytes_per_s: share of its host's network, to other slices.
      dimensions: of the torus, 2 or 3.
      int8_flops, fp8_flops: the same in 8 bits; 0 = it has no such matmul.
      largest: chips of the largest slice.
      cores: TensorCores; Cloud's accelerator types of v4 and v5p count these, not chips.
      devices: of one chip.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    dcn_bytes_per_s: float
    dimensions: int
    largest: int
    int8_flops: float
    fp8_flops: float = 0.0
    cores: int = 1
    devices: int = 1

    def peak(self, numbers: str) -> float:
        """FLOP/s of matmuls of "int8" or "fp8" numbers; of any others, the bfloat16 peak."""
        return {"int8": self.int8_flops, "fp8": self.fp8_flops}.get(numbers, self.peak_flops)


def _gib(size: float) -> int:
    return int(size * GIB)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, _gib(30.75), 1228e9, 300e9, 6.25e9, 3, 4096, 275e12, cores=2),
        Chip("v5e", 197e12, _gib(15.75), 819e9, 200e9, 3.125e9, 2, 256, 394e12),
        Chip("v5p", 459e12, _gib(95.73), 2765e9, 600e9, 6.25e9, 3, 8960, 918e12, cores=2),
        Chip("v6e", 918e12, _gib(31.24), 1640e9, 400e9, 12.5e9, 2, 256, 1836e12),
        # Half a chip. Google states no figure for int8: as bfloat16.
        Chip("tpu7x", 1153.5e12, _gib(94.75), 3690e9, 600e9, 6.25e9, 3, 9216, 1153.5e12, 2307e12, devices=2),
    )
}

# Slices that Cloud sells by number, as torus shapes. Keys count chips.
_SHAPES_2D = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_SHAPES_3D = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices.

    Attributes:
      chip: what they are made of.
      shape: torus of one slice.
      slices: how many; they are joined by the data-centre network.
    """

    chip: Chip
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

    def __str__(self) -> str:
        return self.layout + (f" x {self.slices} slices" if self.slices > 1 else "")


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Read "v5e:4x4", or Cloud's accelerator type "v5e-16" (also "v5litepod-16"; v4 and v5p count cores there).

    Args:
      text: name of one slice.
      slices: number of such slices.

    Raises:
      ConfigError: an unknown chip, a shape of the wrong dimension or size, or fewer than one slice.
    """
    found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)+)|-(\d+))", text.strip().lower().replace("v5litepod", "v5e"))
    if not found or found[1] not in CHIPS:
        raise ConfigError(
            f"--topology={text}: expected a chip of {', '.join(CHIPS)} and a shape, such as v5e:4x4, v5p:4x4x4 or v6e-64"
        )
    if slices < 1:
        raise ConfigError(f"--slices={slices}: must be at least 1")
    chip = CHIPS[found[1]]
    if found[3] and chip.devices > 1:
        raise ConfigError(f"--topology={text}: give a shape, such as {chip.name}:2x2x1")
    if found[3]:
        sizes = _SHAPES_2D if chip.dimensions == 2 else _SHAPES_3D
        count = int(found[3]) // chip.cores
        if count not in sizes or int(found[3]) % chip.cores:
            sold = ", ".join(f"{chip.name}-{n * chip.cores}" for n in sizes)
            raise ConfigError(f"--topology={text}: no such slice; known: {sold}; or give a shape")
        return Topology(chip, sizes[count], slices)
    shape = tuple(int(n) for n in found[2].split("x"))
    example = "4x4" if chip.dimensions == 2 else "2x2x4"
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise ConfigError(
            f"--topology={text}: a slice of {chip.name} has {chip.dimensions} dimensions, such as {chip.name}:{example}"
        )
    if math.prod(shape) > chip.largest:
        raise ConfigError(
            f"--topology={text}: {math.prod(shape)} chips, but the largest {chip.name} slice has {chip.largest}; "
            "use several with --slices"
        )
    return Topology(chip, shape, slices)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least time of a step, seconds, were each resource the only limit and perfectly used.

    Attributes:
      compute: model FLOPs and the recomputed ones at the chip's peak.
      memory: HBM traffic at full bandwidth.
      ici, dcn: what each chip sends within the slice, and to other slices.
    """

    compute: float
    memory: float
    ici: float
    dcn: float

    @property
    def step_s(self) -> float:
        """The slowest of them: everything overlaps. A real step takes longer."""
        return max(self.compute, self.memory, self.ici, self.dcn)

    @property
    def limit(self) -> str:
        """Which resource that is."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(
    chip: Chip,
    flops: float,
    hbm_bytes: float,
    ici_bytes: float,
    dcn_bytes: float,
    quantized: tuple[float, str] = (0.0, ""),
) -> Roofline:
    """The roofline of one device's share of a step; FLOPs and bytes are per device; of the FLOPs, those in 8 bits and their kind."""
    in_8_bits, numbers = quantized
    return Roofline(
        compute=(flops - in_8_bits) / chip.peak_flops + in_8_bits / (chip.peak(numbers) or chip.peak_flops),
        memory=hbm_bytes / chip.hbm_bytes_per_s,
        ici=ici_bytes / chip.ici_bytes_per_s,
        dcn=dcn_bytes / chip.dcn_bytes_per_s,
    )
