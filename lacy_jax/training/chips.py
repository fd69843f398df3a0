"""One table of chips, with their vendors' figures; and the options with which XLA compiles a step for TPUs.

Figures of TPUs are from the Cloud TPU pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" (docs.cloud.google.com/tpu/docs).
Link bandwidth is the sum of a chip's links in ONE direction: what it can send while it receives as much.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX treats as one device: a chip, or half of a TPU v2, v3 or TPU7x chip.

    Attributes:
      name: the name in topologies, such as "v5e".
      kinds: strings in `jax.Device.device_kind` that identify it.
      peak_flops: dense bfloat16 FLOP/s (float16 if it has no bfloat16). On TPUs matmuls of float32 arrays run at this
        rate too, because JAX's default precision multiplies them in bfloat16.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float


@dataclasses.dataclass(frozen=True)
class TpuChip(Chip):
    """A chip that `lacy plan` compiles for.

    Attributes:
      flops_per_cycle: of all its matrix units: 2 x 128 x 128 each; 2 x 256 x 256 from v6e on.
      hbm_bytes: memory that a program may use, as libtpu 0.0.52 reports it: 16, 32 or 95 GiB less a reserve.
      hbm_bytes_per_s: memory bandwidth.
      ici_bytes_per_s: bandwidth to other chips of the slice, all links together, one direction.
      dcn_bytes_per_s: its share of the host's network to other slices.
      dimensions: dimensions of the torus, 2 or 3.
      largest: chips in the largest slice that a job may have: 6,144 of a v5p's 8,960.
      int8_flops, fp8_flops: peak FLOP/s in 8 bits; 0 = it has no such matmul.
      cores: TensorCores; Cloud's accelerator types of v4, v5p and TPU7x count these, not chips.
      devices: JAX devices per chip.
      stand_in: chip whose program `lacy plan` reads where the installed libtpu does not know this one; "" = none.
    """

    flops_per_cycle: int
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
    stand_in: str = ""

    @property
    def clock_hz(self) -> float:
        """Cycles a second."""
        return self.peak_flops / self.flops_per_cycle

    def peak(self, numbers: str) -> float:
        """Peak FLOP/s of matmuls of "int8" or "fp8" numbers; for any others, the bfloat16 peak."""
        return {"int8": self.int8_flops, "fp8": self.fp8_flops}.get(numbers, self.peak_flops)


def _gib(size: float) -> int:
    return int(size * GIB)


# The first chip with a matching kind is taken, so longer kinds come before their prefixes.
CHIPS: tuple[Chip, ...] = (
    Chip("v2", ("TPU v2",), 23e12),
    Chip("v3", ("TPU v3",), 61.5e12),
    Chip("v4i", ("TPU v4 lite",), 138e12),
    TpuChip("v4", ("TPU v4",), 275e12, 262_144, _gib(30.75), 1228e9, 300e9, 6.25e9, 3, 4096, 275e12, cores=2),
    TpuChip(
        "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 131_072, _gib(15.75), 819e9, 200e9, 3.125e9, 2, 256, 394e12
    ),
    TpuChip(
        "v5p", ("TPU v5",), 459e12, 262_144, _gib(95.73), 2765e9, 600e9, 6.25e9, 3, 6144, 918e12, cores=2
    ),
    TpuChip(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        918e12,
        524_288,
        _gib(31.24),
        1640e9,
        400e9,
        12.5e9,
        2,
        256,
        1836e12,
    ),
    # Half a chip. Google gives no figure for int8, so it is that of bfloat16.
    TpuChip(
        "tpu7x",
        ("TPU7x",),
        1153.5e12,
        524_288,
        _gib(94.75),
        3690e9,
        600e9,
        6.25e9,
        3,
        9216,
        1153.5e12,
        2307e12,
        cores=2,
        devices=2,
        stand_in="v5p",  # Three dimensions, and as much memory a device.
    ),
    Chip("b200", ("B200",), 2250e12),
    Chip("h200", ("H200",), 989e12),
    Chip("h100-pcie", ("H100 PCIe",), 756e12),
    Chip("h100", ("H100",), 989e12),
    Chip("a100", ("A100",), 312e12),
    Chip("l40s", ("L40S",), 362e12),
    Chip("l4", ("L4",), 121e12),
    Chip("a10", ("A10",), 125e12),
    Chip("t4", ("T4",), 65e12),
    Chip("v100", ("V100",), 125e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None if it is not in the table."""
    kind = device_kind.lower()
    return next((chip for chip in CHIPS if any(part.lower() in kind for part in chip.kinds)), None)


SPLIT_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
"""XLA's options for a step whose parameters are split over devices: else the compiler may split products of gathered matrices into
rounds that pass the parts around, by its own estimate twice the time for a 1.3B model on a v5e-16 (docs/plan.md)."""
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload"
SCATTER_OPTIONS = {f"{_OFFLOAD}_reduce_scatter": "true", f"{_OFFLOAD}_nd_reduce_scatter": "true"}
"""The same in slices of two dimensions: else the compiler sums gradients whole over 16 chips or more and cuts the sums, which is
twice the exchange. Where there are SparseCores they scatter, beside other work."""
SUM_OPTIONS = {f"{_OFFLOAD}_all_reduce": "true"}
"""The same in slices of three dimensions, where the compiler's scatter uses a third of the links that its sum does, and would take
longer: SparseCores sum, beside other work."""
