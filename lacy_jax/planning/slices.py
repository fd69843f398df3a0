"""Slices of TPUs by name, as Cloud sells them, and the roofline that follows from their chips."""

from __future__ import annotations

import dataclasses
import math
import re

from lacy_jax.errors import ConfigError
from lacy_jax.training.chips import CHIPS, TpuChip

# Those that slices are planned of.
TPUS: dict[str, TpuChip] = {chip.name: chip for chip in CHIPS if isinstance(chip, TpuChip)}

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
    if not found or found[1] not in TPUS:
        raise ConfigError(
            f"--topology={text}: expected a chip of {', '.join(TPUS)} and a shape, such as v5e:4x4, v5p:4x4x4 or v6e-64"
        )
    if slices < 1:
        raise ConfigError(f"--slices={slices}: must be at least 1")
    chip = TPUS[found[1]]
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
    chip: TpuChip,
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
