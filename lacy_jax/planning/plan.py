"""`lacy plan`: compile the real train step for a TPU slice on a machine without one, and report what it will need.

The step is that of `lacy train`, compiled by the TPU compiler itself (package `libtpu`) for a described topology, so
memory and collectives are those of the program that will run. Times are a roofline from public chip figures: no real
step is faster, and most are slower.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from lacy_jax.config import changed
from lacy_jax.errors import ConfigError
from lacy_jax.models import (
    ModelConfig,
    attention_flops_per_token,
    count_params,
    parameter_counts,
)
from lacy_jax.planning.ahead import (
    DoesNotFit,
    Memory,
    compile_step,
    compiled_place,
    model_for_tpu,
    tpu_devices,
)
from lacy_jax.planning.clock import Clock, read_clock
from lacy_jax.planning.collectives import KINDS, Collective, collectives
from lacy_jax.planning.fit import changes_that_may_fit, largest_that_fits
from lacy_jax.planning.links import bandwidth
from lacy_jax.planning.slices import Roofline, Topology, parse_topology, roofline
from lacy_jax.setup import versions
from lacy_jax.training import sharding
from lacy_jax.training.chips import GIB
from lacy_jax.training.quantization import QUANTIZATIONS
from lacy_jax.training.state import ModelDefinition


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

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Collectives by kind: how many run in a step, bytes of their arrays, bytes that one chip sends."""
        found: dict[str, dict[str, float]] = {}
        for kind in KINDS:
            of_kind = [c for c in self.messages if c.kind == kind]
            if of_kind:
                found[kind] = {
                    "executions": sum(c.executions for c in of_kind),
                    "array_bytes": sum(c.size * c.executions for c in of_kind),
                    "sent_bytes": sum(c.sent for c in of_kind),
                    "dcn_bytes": sum(c.sent for c in of_kind if c.crosses_slices),
                }
        return found

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
            "collectives": self.by_kind(),
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
        for kind, row in self.by_kind().items():
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
            f"{_milliseconds(self.clock.by('work'))}, collectives {self.clock.collectives_s * 1e3:.1f}; copies beside other work "
            f"{self.clock.hidden_s * 1e3:.1f}",
            f"    by phase       {_milliseconds(self.clock.by('phase'))}"
            + (f"; without an estimate: {', '.join(self.clock.unknown)}" if self.clock.unknown else ""),
            f"  largest batch    {self.largest_batch or 'not searched'}"
            + (f" (accumulation {self.accumulation})" if self.accumulation > 1 else ""),
            f"  at the roofline  {self.tokens_per_day / 1e9:,.1f} G tokens a day; {budget / 1e9:,.2f} G tokens "
            f"({self.steps:,} steps) take {self.chip_hours:,.0f} chip-hours",
        ]
        return "\n".join(lines)


def make_plan(config: ml_collections.ConfigDict, topology: str, slices: int = 1, search: bool = True) -> Plan:
    """Compile the train step of `config` for a TPU topology and read off what it needs.

    Args:
      config: a run config. Policies that rank by a reference model are planned with a reference of the model's size.
      topology: of one slice, "v5e:4x4" or "v5e-16".
      slices: number of slices.
      search: also find the largest batch that fits; costs a few more compilations.

    Raises:
      ConfigError: libtpu is missing, no such topology, the mesh or the batch does not divide, or the step does not
        fit; the message says what to change.
    """
    place = parse_topology(topology, slices)
    numbers = QUANTIZATIONS.named(config.train.quantization).numbers
    if not place.chip.peak(numbers):
        raise ConfigError(
            f"config.train.quantization = {config.train.quantization!r}: {place.chip.name} multiplies no {numbers}; use 'int8' "
            "or 'none'"
        )
    compiled = compiled_place(place)
    devices = tpu_devices(compiled)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_shape(config, mesh)
    model = model_for_tpu(config, mesh)

    def attempt(changes: dict[str, Any]) -> tuple[Memory, str] | DoesNotFit:
        tried = changed(config, changes)
        its_mesh = sharding.make_mesh(tried.mesh, devices)
        sharding.check_batch_shape(tried, its_mesh)
        found = compile_step(tried, model_for_tpu(tried, its_mesh), its_mesh, place)
        print(f"{_words(changes) or 'as configured'}: {_verdict(found)}", file=sys.stderr, flush=True)
        return found

    unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulation
    asked = attempt({})

    def needed(rows: int) -> tuple[bool, int]:
        same = rows * unit == config.input.batch_size
        found = asked if same else attempt({"input.batch_size": rows * unit})
        return (False, found.needed) if isinstance(found, DoesNotFit) else (True, found[0].used)

    largest = 0
    if search:
        available = asked.available if isinstance(asked, DoesNotFit) else asked[0].available
        largest = largest_that_fits(needed, config.input.batch_size // unit, available) * unit
    if isinstance(asked, DoesNotFit):
        ways = changes_that_may_fit(config, model, place, mesh.shape)
        enough = _first_that_fits(attempt, ways) if search else None
        raise ConfigError(_too_big(config, place, asked, largest, enough, search))
    memory, program = asked
    a_slice = place.devices // place.slices
    messages = collectives(program, place.devices, a_slice if place.slices > 1 else 0)
    where = [tuple(device.coords[: compiled.chip.dimensions]) for device in mesh.devices.flat]
    slower = compiled.chip.ici_bytes_per_s / place.chip.ici_bytes_per_s
    ici_s = slower * sum(
        c.sent / bandwidth(compiled, [where[i] for i in c.members], ring=c.kind != "collective-permute")
        for c in messages
        if not c.crosses_slices
    )
    tokens = config.input.batch_size * config.input.seq_len
    trained = ModelDefinition(model, config.train.trainable).trained
    flops_per_token = trained.flops_per_token(config.input.seq_len)
    flops = (flops_per_token + recomputed_flops_per_token(model, config)) * tokens
    between = sum(c.sent for c in messages if c.crosses_slices)
    clock = read_clock(program, compiled.chip, ici_s + between / place.chip.dcn_bytes_per_s)
    if compiled != place:
        clock = clock.on(place.chip, compiled.chip)
    times = roofline(
        place.chip,
        flops / place.devices,
        clock.hbm_bytes,
        ici_s,
        between,
        (quantized_flops_per_token(model, config) * tokens / place.devices, numbers),
    )
    return Plan(
        name=config.name,
        policy=config.objective.policy,
        topology=place,
        compiled=compiled,
        mesh=dict(mesh.shape),
        model=model,
        batch_size=config.input.batch_size,
        seq_len=config.input.seq_len,
        accumulation=config.train.accumulation,
        steps=config.train.steps,
        quantization=config.train.quantization,
        trained=trained.count,
        flops_per_token=flops_per_token,
        memory=memory,
        messages=messages,
        times=times,
        clock=clock,
        largest_batch=largest,
    )


def recomputed_flops_per_token(model: ModelConfig, config: ml_collections.ConfigDict) -> float:
    """FLOPs done a second time: in the backward pass, the logits of the fused loss and the layers of the remat policy;
    also a first forward pass if the mask is chosen over the whole step."""
    attention = attention_flops_per_token(model, config.input.seq_len)
    layers = 2.0 * parameter_counts(model).layer_matrices
    logits = 2.0 * model.vocab_size * model.d_model if config.objective.loss == "fused" else 0.0
    kernel = 0.0 if model.attention in ("splash", "xla") else attention  # Their residuals are kept.
    again = {"none": 0.0, "dots": kernel, "attention": layers + kernel, "full": attention + layers}[
        model.remat
    ]
    if config.train.accumulation > 1 and config.objective.mask_scope == "step":  # For the mask.
        again += attention + layers + 2.0 * model.vocab_size * model.d_model
    return logits + again


def quantized_flops_per_token(model: ModelConfig, config: ml_collections.ConfigDict) -> float:
    """FLOPs that `train.quantization` puts into 8 bits: the layers' matrices, including recomputed ones."""
    chosen = QUANTIZATIONS[config.train.quantization]
    passes = (1 + (model.remat in ("full", "attention")) + 2 * chosen.backward) if chosen.numbers else 0
    return 2.0 * parameter_counts(model).layer_matrices * passes


def _verdict(found: tuple[Memory, str] | DoesNotFit) -> str:
    if isinstance(found, DoesNotFit):
        return f"does not fit, needs {found.needed / GIB:.1f} of {found.available / GIB:.2f} GiB"
    return f"fits, {found[0].used / GIB:.2f} of {found[0].available / GIB:.2f} GiB"


def _milliseconds(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value * 1e3:.1f}" for name, value in seconds.items())


def _words(changes: dict[str, Any]) -> str:
    return " ".join(f"--config.{field}={value}" for field, value in changes.items())


def _first_that_fits(
    attempt: Callable[[dict[str, Any]], tuple[Memory, str] | DoesNotFit], ways: Iterator[dict[str, Any]]
) -> dict[str, Any] | None:
    """The first change with which the step compiles and fits; changes that the mesh or model rejects are skipped."""
    for changes in ways:
        try:
            if not isinstance(attempt(changes), DoesNotFit):
                return changes
        except ConfigError:
            continue
    return None


def _too_big(
    config: ml_collections.ConfigDict,
    place: Topology,
    found: DoesNotFit,
    largest: int,
    enough: dict[str, Any] | None,
    searched: bool,
) -> str:
    start = (
        f"{config.name} on {place}: config.input.batch_size = {config.input.batch_size} does not fit: needs "
        f"{found.needed / GIB:.1f} GiB a chip of {found.available / GIB:.2f}"
    )
    if not searched:
        return (
            f"{start}; raise config.mesh.fsdp (now {config.mesh.fsdp}), config.mesh.sequence (now {config.mesh.sequence}), "
            f"config.mesh.tensor (now {config.mesh.tensor}) or config.train.accumulation (now {config.train.accumulation}), "
            f"set config.model.remat='full' (now {config.model.remat!r}), lower the batch or take a larger slice; without --no-search one that fits is named"
        )
    options = [f"{_words(enough)} does, with the same batch"] if enough else []
    if largest:
        options.append(f"--config.input.batch_size={largest} does, the largest on this mesh")
    return f"{start}; " + (
        "; ".join(options)
        or "no wider config.mesh.fsdp or config.mesh.sequence, remat or accumulation does: take a larger slice or a smaller model"
    )
