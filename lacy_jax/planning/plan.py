"""`lacy plan`: compile the real train step for a TPU slice on a machine without one, and report what it will need.

The step is that of `lacy train`, compiled by the TPU compiler itself (package `libtpu`) for a described topology, so
memory and collectives are those of the program that will run. Times are a roofline from public chip figures: no real
step is faster, and most are slower.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from lacy_jax.config import changed
from lacy_jax.errors import ConfigError
from lacy_jax.models import ModelConfig, attention_flops_per_token, parameter_counts
from lacy_jax.planning.ahead import (
    DoesNotFit,
    Memory,
    compile_step,
    compiled_place,
    model_for_tpu,
    tpu_devices,
)
from lacy_jax.planning.clock import read_clock
from lacy_jax.planning.collectives import collectives
from lacy_jax.planning.fit import changes_that_may_fit, into_a_loop, largest_that_fits
from lacy_jax.planning.links import exchange_seconds, seconds_of_each
from lacy_jax.planning.result import Plan
from lacy_jax.planning.slices import Topology, parse_topology, roofline
from lacy_jax.training import sharding
from lacy_jax.training.chips import GIB
from lacy_jax.training.quantization import QUANTIZATIONS
from lacy_jax.training.state import ModelDefinition


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
    target = target_of(config, topology, slices)
    place = target.place

    def attempt(changes: dict[str, Any]) -> tuple[Memory, str] | DoesNotFit:
        tried = changed(config, changes)
        mesh, model = target.mesh_and_model(tried)
        found = compile_step(tried, model, mesh, place)
        print(f"{words(changes) or 'as configured'}: {_verdict(found)}", file=sys.stderr, flush=True)
        return found

    mesh, model = target.mesh_and_model(config)
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
        raise ConfigError(too_big(config, place, asked, largest, enough, search))
    return read_plan(config, target, *asked, largest)


@dataclasses.dataclass(frozen=True)
class Target:
    """What steps are compiled for.

    Attributes:
      place: slice or slices.
      compiled: those whose program is read: the same, or the stand-in of a chip that libtpu does not know.
      devices: descriptions of the latter's devices.
    """

    place: Topology
    compiled: Topology
    devices: list[jax.Device]

    def mesh_and_model(self, config: ml_collections.ConfigDict) -> tuple[Mesh, ModelConfig]:
        """The mesh of a config, and its model with the attention of a TPU.

        Raises:
          ConfigError: the mesh or the batch does not divide.
        """
        mesh = sharding.make_mesh(config.mesh, self.devices)
        sharding.check_batch_shape(config, mesh)
        return mesh, model_for_tpu(config, mesh)


def target_of(config: ml_collections.ConfigDict, topology: str, slices: int = 1) -> Target:
    """The slices of that name.

    Raises:
      ConfigError: libtpu is missing, no such topology, or the chip has no products of `train.quantization`.
    """
    place = parse_topology(topology, slices)
    numbers = QUANTIZATIONS.named(config.train.quantization).numbers
    if not place.chip.peak(numbers):
        raise ConfigError(
            f"config.train.quantization = {config.train.quantization!r}: {place.chip.name} multiplies no {numbers}; use 'int8' "
            "or 'none'"
        )
    compiled = compiled_place(place)
    return Target(place, compiled, tpu_devices(compiled))


def read_plan(
    config: ml_collections.ConfigDict, target: Target, memory: Memory, program: str, largest: int = 0
) -> Plan:
    """What the compiled step of `config` needs and how long it should take; `largest`: see `Plan.largest_batch`.

    Raises:
      LacyError: the program does not say how often its loops run.
    """
    place, compiled = target.place, target.compiled
    mesh, model = target.mesh_and_model(config)
    numbers = QUANTIZATIONS[config.train.quantization].numbers
    a_slice = place.devices // place.slices
    messages = collectives(program, place.devices, a_slice if place.slices > 1 else 0)
    slower = compiled.chip.ici_bytes_per_s / place.chip.ici_bytes_per_s
    each = seconds_of_each(compiled, messages, list(mesh.devices.flat))
    ici_s = slower * exchange_seconds(messages, each)
    tokens = config.input.batch_size * config.input.seq_len
    trained = ModelDefinition(model, config.train.trainable).trained
    flops_per_token = trained.flops_per_token(config.input.seq_len)
    flops = (flops_per_token + recomputed_flops_per_token(model, config)) * tokens
    between = sum(c.sent for c in messages if c.crosses_slices)
    clock = read_clock(program, compiled.chip, ici_s + between / place.chip.dcn_bytes_per_s, each)
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


def arguments(changes: Mapping[str, Any]) -> list[str]:
    """Changes as arguments of the command line, without spaces, so that a shell reads them from a file: `$(cat FILE)`."""
    values = {
        field: value if isinstance(value, str) else repr(value).replace(", ", ",")
        for field, value in changes.items()
    }
    return [f"--config.{field}={value}" for field, value in values.items()]


def words(changes: Mapping[str, Any]) -> str:
    """Changes as one types them."""
    given = arguments(changes)
    return " ".join(
        f'"{one}"' if "'" in one and not set('"$`\\!') & set(one) else shlex.quote(one) for one in given
    )


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


def too_big(
    config: ml_collections.ConfigDict,
    place: Topology,
    found: DoesNotFit,
    largest: int,
    enough: dict[str, Any] | None,
    searched: bool,
) -> str:
    """The message for a step that does not fit: what it needs, and what does fit."""
    start = (
        f"{config.name} on {place}: config.input.batch_size = {config.input.batch_size} does not fit: needs "
        f"{found.needed / GIB:.1f} GiB a chip of {found.available / GIB:.2f}"
    )
    if not searched:
        remat = config.model.remat
        loop = f"take {words(changes)}, " if (changes := into_a_loop(config)) else ""
        recompute = f"set config.model.remat='full' (now {remat!r}), " if remat != "full" else ""
        return (
            f"{start}; raise config.mesh.fsdp (now {config.mesh.fsdp}), config.mesh.sequence (now {config.mesh.sequence}), "
            f"config.mesh.tensor (now {config.mesh.tensor}) or config.train.accumulation (now {config.train.accumulation}), "
            f"{loop}{recompute}lower the batch or take a larger slice; without --no-search one that fits is named"
        )
    options = [f"{words(enough)} does, with the same batch"] if enough else []
    if largest:
        options.append(f"--config.input.batch_size={largest} does, the largest on this mesh")
    return f"{start}; " + (
        "; ".join(options)
        or "no wider config.mesh.fsdp or config.mesh.sequence, remat or accumulation does: take a larger slice or a smaller model"
    )
