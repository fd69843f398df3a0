"""What `lacy plan` found for one config on one slice, as JSON and as text for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from lacy_jax.models import ModelConfig, count_params, parameter_counts
from lacy_jax.planning.ahead import Memory
from lacy_jax.planning.clock import Clock
from lacy_jax.planning.collectives import Collective, by_kind
from lacy_jax.planning.slices import Roofline, Topology
from lacy_jax.setup import versions
from lacy_jax.training.chips import GIB


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config needs on a slice; `to_dict` gives the same as JSON.

    Attributes:
      name, policy: of the config.
      topology: slice or slices.
      compiled: what the program was compiled for: the same, or the stand-in of a chip that libtpu does not know. Then memory and
        collectives are those of the stand-in's program, and everything else follows from them by the table of chips.
      mesh: sizes of its axes.
      model: dimensions, with the attention that was compiled.
      batch_size, seq_len, accumulation: of one step.
      steps: of the config.
      quantization: of the config.
      trained: parameters that are trained.
      flops_per_token: FLOPs of training them, forward and backward, without recomputation.
      memory: per device; a TPU7x chip has two devices.
      messages: the collectives of a step, most bytes first.
      times: the roofline of a step.
      clock: the compiler's own estimate of it.
      largest_batch: the most sequences per step that still fit, found by search; 0 = not searched.
    """

    name: str
    policy: str
    topology: Topology
    compiled: Topology
    mesh: dict[str, int]
    model: ModelConfig
    batch_size: int
    seq_len: int
    accumulation: int
    steps: int
    quantization: str
    trained: int
    flops_per_token: float
    memory: Memory
    messages: list[Collective]
    times: Roofline
    clock: Clock
    largest_batch: int

    @property
    def tokens_per_step(self) -> int:
        """Positions of the global batch."""
        return self.batch_size * self.seq_len

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs, forward and backward, without recomputation."""
        return self.flops_per_token * self.tokens_per_step

    @property
    def utilisation_bound(self) -> float:
        """Model FLOPs of the roofline step over the peak: no run can show a higher MFU."""
        return self.flops_per_step / (
            self.topology.devices * self.topology.chip.peak_flops * self.times.step_s
        )

    @property
    def tokens_per_day(self) -> float:
        """Tokens per day at the roofline."""
        return self.tokens_per_step * 86_400 / self.times.step_s

    @property
    def chip_hours(self) -> float:
        """Chip-hours for all steps of the config, at the roofline."""
        return self.steps * self.times.step_s / 3600 * self.topology.chips

    @property
    def utilisation(self) -> float:
        """MFU by the compiler's estimate."""
        return self.utilisation_bound * self.times.step_s / self.clock.step_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; in bytes, seconds and FLOPs."""
        counts = parameter_counts(self.model)
        return {
            "name": self.name,
            "policy": self.policy,
            "topology": self.topology.layout,
            "compiled_for": self.compiled.layout,
            "slices": self.topology.slices,
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "model": dataclasses.asdict(self.model),
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "accumulation": self.accumulation,
            "quantization": self.quantization,
            "parameters": counts.total,
            "trained_parameters": self.trained,
            "parameters_by_part": dataclasses.asdict(counts),
            "flops_per_step": self.flops_per_step,
            "memory_per_chip": {
                **dataclasses.asdict(self.memory),
                "used": self.memory.used,
                "left": self.memory.left,
            },
            "collectives": by_kind(self.messages),
            "roofline_s": {**dataclasses.asdict(self.times), "step": self.times.step_s},
            "limit": self.times.limit,
            "clock_s": self.clock.to_dict(),
            "utilisation": self.utilisation,
            "utilisation_bound": self.utilisation_bound,
            "largest_batch": self.largest_batch,
            "tokens_per_day": self.tokens_per_day,
            "token_budget": self.steps * self.tokens_per_step,
            "chip_hours": self.chip_hours,
            "compiler": {name: versions.version(name) for name in ("jax", "libtpu")},
        }

    def summary(self) -> str:
        """The same as text for people."""
        m, t, gib = self.memory, self.times, 1 / GIB
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        budget = self.steps * self.tokens_per_step
        trained = "" if self.trained == count_params(self.model) else f"{self.trained:,} trained of "
        lines = [
            f"{self.name} ({self.policy}) on {self.topology}: {self.topology.chips} chips, {axes}",
            f"  parameters       {trained}{count_params(self.model) / 1e6:,.1f} M ({self.model.family}, {self.model.dtype}, "
            f"remat {self.model.remat}, attention {self.model.attention}"
            + (f", quantization {self.quantization})" if self.quantization != "none" else ")"),
            f"  step             {self.batch_size} sequences x {self.seq_len} = {self.tokens_per_step:,} tokens, "
            f"{self.flops_per_step / 1e12:,.1f} TFLOP",
            f"  memory per {'chip' if self.topology.chip.devices == 1 else 'half'}  {m.used * gib:.2f} of {m.available * gib:.2f} GiB: arguments {m.arguments * gib:.2f}, "
            f"temporaries {m.temporaries * gib:.2f}, program {m.program * gib:.2f}; {m.left * gib:.2f} left",
        ]
        if self.compiled != self.topology:
            lines.append(
                f"  by the table     libtpu {versions.version('libtpu')} does not know {self.topology.chip.name}: the program is that of "
                f"{self.compiled}, the speeds are those of {self.topology.chip.name} in the table of chips"
            )
        for kind, row in by_kind(self.messages).items():
            dcn = f", {row['dcn_bytes'] / 1e6:,.1f} MB of it between slices" if row["dcn_bytes"] else ""
            lines.append(
                f"  {kind:<16} {row['executions']:,.0f} a step, arrays of {row['array_bytes'] / 1e6:,.1f} MB; "
                f"a chip sends {row['sent_bytes'] / 1e6:,.1f} MB{dcn}"
            )
        lines += [
            f"  roofline         {t.step_s * 1e3:.1f} ms a step, limited by {t.limit} (compute {t.compute * 1e3:.1f}, "
            f"memory {t.memory * 1e3:.1f}, ici {t.ici * 1e3:.1f}, dcn {t.dcn * 1e3:.1f}); "
            f"utilisation at most {100 * self.utilisation_bound:.0f} %",
            f"  compiler's clock {self.clock.step_s * 1e3:.1f} ms a step, MFU {100 * self.utilisation:.0f} % "
            f"(lower bound {self.clock.least_s * 1e3:.1f} ms): "
            f"{_milliseconds(self.clock.by('work'))}, collectives {self.clock.collectives_s * 1e3:.1f} "
            f"({self.clock.overlapped_s * 1e3:.1f} of them beside other work); copies beside other work "
            f"{self.clock.hidden_s * 1e3:.1f}",
            f"    by phase       {_milliseconds(self.clock.by('phase'))}"
            + (f"; without an estimate: {', '.join(self.clock.unknown)}" if self.clock.unknown else ""),
            f"  largest batch    {self.largest_batch or 'not searched'}"
            + (f" (accumulation {self.accumulation})" if self.accumulation > 1 else ""),
            f"  at the roofline  {self.tokens_per_day / 1e9:,.1f} G tokens a day; {budget / 1e9:,.2f} G tokens "
            f"({self.steps:,} steps) take {self.chip_hours:,.0f} chip-hours",
        ]
        return "\n".join(lines)


def _milliseconds(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value * 1e3:.1f}" for name, value in seconds.items())
