"""`lacy plan`: compile the real train step for a TPU slice on a machine without one, and say what it will need.

The step is that of `lacy train`, compiled by the TPU compiler itself (package `libtpu`) for a described topology:
memory and collectives are those of the program that will run. Times are a roofline from public chip figures: no real
step is faster, and most are slower.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lacy_jax.dataset.batch import Batch
from lacy_jax.errors import ConfigError
from lacy_jax.models import ModelConfig, count_params, flops_per_token, parameter_counts, resolve_model_config
from lacy_jax.models.attention import choose
from lacy_jax.objectives import POLICIES
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.chips import GIB, Roofline, Topology, parse_topology, roofline
from lacy_jax.training.collectives import KINDS, Collective, collectives
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, abstract_state, state_shardings
from lacy_jax.training.step import make_train_step

# Rows per device and micro-batch that the search tries.
ROWS = tuple(sorted({2**k for k in range(13)} | {3 * 2**k for k in range(11)}))


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip, bytes.

    Attributes:
      arguments: parameters, optimiser state and batch.
      temporaries: everything else alive at the worst moment: activations, gradients, gathered parameters.
      program: the compiled code.
      available: what a program may use.
    """

    arguments: int
    temporaries: int
    program: int
    available: int

    @property
    def used(self) -> int:
        """Bytes at the worst moment; outputs lie in the donated arguments."""
        return self.arguments + self.temporaries + self.program

    @property
    def left(self) -> int:
        """Bytes still free at the worst moment."""
        return self.available - self.used


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """The compiler's verdict: bytes it would need (as far as it says), of those available."""

    needed: int
    available: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config needs on a slice; `to_dict` has the same as JSON.

    Attributes:
      name, policy: of the config.
      topology: slice or slices.
      mesh: sizes of its axes.
      model: dimensions, with the attention that was compiled.
      batch_size, seq_len, accumulation: of one step.
      steps: of the config.
      memory: per chip.
      messages: the collectives of a step, most bytes first.
      times: the roofline of a step.
      largest_batch: most sequences in a step that still compile, found by search; 0 = not searched.
    """

    name: str
    policy: str
    topology: Topology
    mesh: dict[str, int]
    model: ModelConfig
    batch_size: int
    seq_len: int
    accumulation: int
    steps: int
    memory: Memory
    messages: list[Collective]
    times: Roofline
    largest_batch: int

    @property
    def tokens_per_step(self) -> int:
        """Positions of the global batch."""
        return self.batch_size * self.seq_len

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs, forward and backward, without recomputation."""
        return flops_per_token(self.model, self.seq_len) * self.tokens_per_step

    @property
    def utilisation_bound(self) -> float:
        """Model FLOPs of the roofline step over the peak: no run can show a higher MFU."""
        return self.flops_per_step / (self.topology.chips * self.topology.chip.peak_flops * self.times.step_s)

    @property
    def tokens_per_day(self) -> float:
        """At the roofline."""
        return self.tokens_per_step * 86_400 / self.times.step_s

    @property
    def chip_hours(self) -> float:
        """For all steps of the config, at the roofline."""
        return self.steps * self.times.step_s / 3600 * self.topology.chips

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
        """JSON-safe. Bytes, seconds, FLOPs."""
        counts = parameter_counts(self.model)
        return {
            "name": self.name,
            "policy": self.policy,
            "topology": self.topology.layout,
            "slices": self.topology.slices,
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "model": dataclasses.asdict(self.model),
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "accumulation": self.accumulation,
            "parameters": counts.total,
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
            "utilisation_bound": self.utilisation_bound,
            "largest_batch": self.largest_batch,
            "tokens_per_day": self.tokens_per_day,
            "token_budget": self.steps * self.tokens_per_step,
            "chip_hours": self.chip_hours,
        }

    def summary(self) -> str:
        """The same for people."""
        m, t, gib = self.memory, self.times, 1 / GIB
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        budget = self.steps * self.tokens_per_step
        lines = [
            f"{self.name} ({self.policy}) on {self.topology}: {self.topology.chips} chips, {axes}",
            f"  parameters       {count_params(self.model) / 1e6:,.1f} M ({self.model.family}, {self.model.dtype}, "
            f"remat {self.model.remat}, attention {self.model.attention})",
            f"  step             {self.batch_size} sequences x {self.seq_len} = {self.tokens_per_step:,} tokens, "
            f"{self.flops_per_step / 1e12:,.1f} TFLOP",
            f"  memory per chip  {m.used * gib:.2f} of {m.available * gib:.2f} GiB: arguments {m.arguments * gib:.2f}, "
            f"temporaries {m.temporaries * gib:.2f}, program {m.program * gib:.2f}; {m.left * gib:.2f} left",
        ]
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
            f"  largest batch    {self.largest_batch or 'not searched'}"
            + (f" (accumulation {self.accumulation})" if self.accumulation > 1 else ""),
            f"  at the roofline  {self.tokens_per_day / 1e9:,.1f} G tokens a day; {budget / 1e9:,.2f} G tokens "
            f"({self.steps:,} steps) take {self.chip_hours:,.0f} chip-hours",
        ]
        return "\n".join(lines)


def make_plan(config: ml_collections.ConfigDict, topology: str, slices: int = 1, search: bool = True) -> Plan:
    """Compile the train step of `config` for a TPU topology and read off what it needs.

    Args:
      config: a run config. Policies that rank by a reference model are planned with one of the same size.
      topology: of one slice, "v5e:4x4" or "v5e-16".
      slices: number of slices.
      search: also find the largest batch that fits; costs a few more compilations.

    Raises:
      ConfigError: libtpu is missing, no such topology, the mesh or the batch does not divide, or the step does not
        fit; the message says what to change.
    """
    place = parse_topology(topology, slices)
    mesh = sharding.make_mesh(config.mesh, _devices(place))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    sharding.check_batch_size(config, mesh)
    model = _model(config)
    accumulation = config.train.accumulation
    rows = config.input.batch_size // (shards * accumulation)

    compiled: dict[int, tuple[Memory, Any] | DoesNotFit] = {}

    def attempt(rows: int) -> tuple[Memory, Any] | DoesNotFit:
        if rows not in compiled:
            sized = config.copy_and_resolve_references()
            sized.input.batch_size = rows * shards * accumulation
            compiled[rows] = _compile(sized, model, mesh, place)
            print(
                f"compiled {sized.input.batch_size} sequences: {_verdict(compiled[rows])}",
                file=sys.stderr,
                flush=True,
            )
        return compiled[rows]

    def needed(rows: int) -> tuple[bool, int]:
        found = attempt(rows)
        return (False, found.needed) if isinstance(found, DoesNotFit) else (True, found[0].used)

    asked = attempt(rows)
    largest = 0
    if search or isinstance(asked, DoesNotFit):
        available = asked.available if isinstance(asked, DoesNotFit) else asked[0].available
        largest = largest_that_fits(needed, rows, available) * shards * accumulation
    if isinstance(asked, DoesNotFit):
        raise ConfigError(_too_big(config, place, asked, largest, shards))
    memory, program = asked
    messages = collectives(program.as_text(), place.chips, place.chips // slices if slices > 1 else 0)
    sent = {
        crosses: sum(c.sent for c in messages if c.crosses_slices == crosses) for crosses in (False, True)
    }
    tokens = config.input.batch_size * config.input.seq_len
    flops = (
        flops_per_token(model, config.input.seq_len) + recomputed_flops_per_token(model, config)
    ) * tokens
    return Plan(
        name=config.name,
        policy=config.objective.policy,
        topology=place,
        mesh=dict(mesh.shape),
        model=model,
        batch_size=config.input.batch_size,
        seq_len=config.input.seq_len,
        accumulation=accumulation,
        steps=config.train.steps,
        memory=memory,
        messages=messages,
        # Arguments are read and written in place once, temporaries at least written and read once.
        times=roofline(
            place.chip,
            flops / place.chips,
            2 * (memory.arguments + memory.temporaries),
            sent[False],
            sent[True],
        ),
        largest_batch=largest,
    )


def recomputed_flops_per_token(model: ModelConfig, config: ml_collections.ConfigDict) -> float:
    """FLOPs done a second time in the backward pass: logits by the fused loss, layers by the remat policy."""
    attention = 4.0 * model.n_layers * model.n_heads * model.head_dim * config.input.seq_len
    layers = 2.0 * parameter_counts(model).layer_matrices
    logits = 2.0 * model.vocab_size * model.d_model if config.objective.loss == "fused" else 0.0
    return logits + {"none": 0.0, "dots": attention, "full": attention + layers}[model.remat]


def largest_that_fits(needed: Callable[[int], tuple[bool, int]], start: int, available: int) -> int:
    """The largest of `ROWS` (or `start`) that fits; 0 if none does.

    Each question is a compilation. One that fails for want of memory fails early, within seconds, and still says what
    it would need; so the search first overshoots, then follows the line through the two points next to the boundary.

    Args:
      needed: rows -> (fits, bytes needed).
      start: rows to ask first.
      available: bytes.
    """
    candidates = sorted({*ROWS, start})
    sizes: dict[int, int] = {}
    low, high = -1, len(candidates)  # Greatest index known to fit, smallest known not to.
    index = candidates.index(start)
    while True:
        rows = candidates[index]
        good, sizes[rows] = needed(rows)
        low, high = (index, high) if good else (low, index)
        if high - low <= 1:
            return candidates[low] if low >= 0 else 0
        guess = _guess(sizes, available)
        under = sum(rows <= guess for rows in candidates) - 1
        index = min(max(under, low + 1), high - 1)


def _guess(sizes: dict[int, int], available: int) -> float:
    """Rows at which the bytes needed should reach `available`; well beyond it while only fitting sizes are known."""
    near = sorted(sizes.items(), key=lambda item: abs(item[1] - available))[:2]
    if max(sizes.values()) <= available:
        rows, size = max(sizes.items())
        return 4 * rows * available / size
    if len(near) == 1:
        return near[0][0] * available / near[0][1]
    (a, size_a), (b, size_b) = sorted(near)
    if size_b <= size_a:
        return (a + b) / 2
    return a + (available - size_a) * (b - a) / (size_b - size_a)


def _devices(place: Topology) -> list[jax.Device]:
    """Descriptions of the chips; they compile but cannot run."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            "lacy plan compiles with libtpu, which is not installed: pip install 'lacy_jax[tpu]' (Linux x86-64, no TPU needed)"
        )
    # No TPU is looked for, neither by JAX nor by libtpu, whose questions to the cloud's metadata server take minutes;
    # the answers it misses are given here, else it complains on stderr. As no TPU is used, plans may run side by side.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        more: dict[str, Any] = {"num_slices": place.slices} if place.slices > 1 else {}
        if place.chip.name == "v4":  # Both cores as one device, as on a real v4.
            more["chip_config_name"] = "megacore"
        found = topologies.get_topology_desc(platform="tpu", topology_name=place.layout, **more)
    except Exception as error:  # The plug-in raises several kinds for a topology it does not know.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--topology={place.layout}: the TPU compiler refuses it: {first}") from error
    return list(found.devices)


def _model(config: ml_collections.ConfigDict) -> ModelConfig:
    vocabulary = config.tokenizer.vocab_size
    if config.tokenizer.path and os.path.exists(config.tokenizer.path):
        vocabulary = Tokenizer.load(config.tokenizer.path).vocab_size
    model = resolve_model_config(config.model, vocabulary, config.input.seq_len)
    if model.attention == "auto":  # Of the platform planned for, not of this process.
        chosen = choose("tpu", config.input.seq_len, model.head_dim, jnp.dtype(model.dtype))
        model = dataclasses.replace(model, attention=chosen)
    return model


def _compile(
    config: ml_collections.ConfigDict, model_config: ModelConfig, mesh: Mesh, place: Topology
) -> tuple[Memory, Any] | DoesNotFit:
    model = ModelDefinition(model_config)
    tx = make_optimizer(config, model.axes)
    state = abstract_state(model, tx, mesh)
    needs = POLICIES[config.objective.policy].needs
    modelled = "reference_nll" in needs and config.objective.reference != "dataset"
    step: Any = make_train_step(
        config, model, tx, mesh, state_shardings(model, tx, mesh), model if modelled else None
    )
    batch = _abstract_batch(config, mesh, needs, modelled)
    # The abstract mesh alone: constants made while tracing must not be placed on devices that are not there.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = step.lower(state, batch, state.params if modelled else None)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return read_out_of_memory(str(error), place.chip.hbm_bytes)
    stats = program.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        available=place.chip.hbm_bytes,
    )
    return (memory, program) if memory.left >= 0 else DoesNotFit(memory.used, memory.available)


def read_out_of_memory(message: str, capacity: int) -> DoesNotFit:
    """What the compiler says it needs and has; where it does not say, just over `capacity` bytes."""
    sizes = [
        int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit])
        for number, unit in re.findall(r"([\d.]+)([KMGT])\b", message)
    ]
    if len(sizes) < 2 or sizes[0] <= sizes[1]:
        return DoesNotFit(capacity + 1, capacity)
    return DoesNotFit(sizes[0], sizes[1])


def _abstract_batch(
    config: ml_collections.ConfigDict, mesh: Mesh, needs: tuple[str, ...], modelled: bool
) -> Batch:
    shape = (config.input.batch_size, config.input.seq_len)
    where = sharding.batch_sharding(mesh)

    def leaf(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    ids, bit = leaf(jnp.int32), leaf(jnp.bool_)
    return Batch(
        tokens=ids, targets=ids, positions=ids, segment_ids=ids, weights=bit, factual=bit, nongrammatical=bit,
        judge=bit if "judge" in needs else None,
        reference_nll=leaf(jnp.float32) if "reference_nll" in needs and not modelled else None,
    )  # fmt: skip


def _verdict(found: tuple[Memory, Any] | DoesNotFit) -> str:
    if isinstance(found, DoesNotFit):
        return f"does not fit, needs {found.needed / GIB:.1f} of {found.available / GIB:.2f} GiB"
    return f"fits, {found[0].used / GIB:.2f} of {found[0].available / GIB:.2f} GiB"


def _too_big(
    config: ml_collections.ConfigDict, place: Topology, found: DoesNotFit, largest: int, shards: int
) -> str:
    rows = config.input.batch_size
    start = (
        f"{config.name} on {place}: config.input.batch_size = {rows} does not fit: needs {found.needed / GIB:.1f} GiB a chip "
        f"of {found.available / GIB:.2f}"
    )
    if not largest:
        return (
            f"{start}, and not even one sequence per device does: raise config.mesh.fsdp (now {config.mesh.fsdp}) or "
            f"config.mesh.tensor (now {config.mesh.tensor}), set config.model.remat='full', or take a larger slice"
        )
    per_micro = largest // config.train.accumulation
    options = [
        a
        for a in range(config.train.accumulation + 1, rows + 1)
        if rows % (a * shards) == 0 and rows // a <= per_micro
    ]
    accumulate = f"set config.train.accumulation={options[0]}, or " if options else ""
    remat = "" if config.model.remat == "full" else " or set config.model.remat='full'"
    return f"{start}; {accumulate}lower it to {math.floor(largest)}, the largest that fits{remat}"
