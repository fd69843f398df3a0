"""The settings that `lacy plan --tune` may change, and the order in which it tries them.

All of them leave the values that a step computes alone but for the order of sums: how work is split, kept, cut and
compiled, not what is learned. So accumulation comes with `objective.mask_scope = "step"`, whose mask is that of the whole
batch, and is left alone where the config has chosen a mask of each micro-batch, or dropout, whose draws would differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from lacy_jax.config import get_field, xla_options_of
from lacy_jax.models import ModelConfig
from lacy_jax.models.mask import KEY_BLOCK
from lacy_jax.models.transformer import REMATS

Changes = dict[str, Any]
"""Dotted config field -> value."""

_USUAL_CHUNK, _SMALLEST_CHUNK = 1024, 256
# openxla.org/xla/flags_guidance, of which these can change an estimate: how much of its vector memory an operation may use, and
# what is fused and placed there. Flags that move exchange beside other work are left out: the clock hides no collective.
_OPTIONS = (
    "xla_tpu_scoped_vmem_limit_kib=32768",
    "xla_tpu_scoped_vmem_limit_kib=65536",
    "xla_tpu_rwb_fusion=false",
    "xla_tpu_dot_dot_fusion=false",
    "xla_tpu_msa_inefficient_use_to_copy_ratio=0",
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A config in the space.

    Attributes:
      config: itself. model: its model as compiled. mesh: sizes of the mesh axes.
    """

    config: ml_collections.ConfigDict
    model: ModelConfig
    mesh: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Fields that change together.

    Attributes:
      name: for people.
      fields: the fields.
      steps: from a point, the changes that lead to its neighbours.
    """

    name: str
    fields: tuple[str, ...]
    steps: Callable[[Point], Iterator[Changes]]


def _state(point: Point) -> Iterator[Changes]:
    if point.mesh["data"] > 1:
        yield {"train.shard_optimizer": not point.config.train.shard_optimizer}


def _chunk(point: Point) -> Iterator[Changes]:
    config, mesh = point.config, point.mesh
    parts = mesh["data"] * mesh["fsdp"] * mesh["sequence"] * config.train.accumulation
    most = config.input.batch_size * config.input.seq_len // parts  # Tokens of a device and micro-batch.
    now = config.objective.chunk
    sizes = (2 * now, now // 2) if now else (_USUAL_CHUNK,)
    if config.objective.loss == "fused":
        yield from ({"objective.chunk": size} for size in sizes if _SMALLEST_CHUNK <= size <= most)


def _options(point: Point) -> Iterator[Changes]:
    now = xla_options_of(point.config)
    for option in _OPTIONS:
        name, _, value = option.partition("=")
        others = {key: given for key, given in now.items() if key != name}
        changed = others if now.get(name) == value else {**others, name: value}
        yield {"train.compiler_options": tuple(f"{key}={given}" for key, given in changed.items())}


def _remat(point: Point) -> Iterator[Changes]:
    yield from ({"model.remat": name} for name in REMATS if name != point.config.model.remat)


def _layers(point: Point) -> Iterator[Changes]:
    yield {"model.scan_layers": not point.config.model.scan_layers}


def _block(point: Point) -> Iterator[Changes]:
    now, row = point.model.attention_block, point.config.input.seq_len // point.mesh["sequence"]
    if point.model.attention == "splash":
        sizes = (size for size in (2 * now, now // 2) if size >= KEY_BLOCK and row % size == 0)
        yield from ({"model.attention_block": size} for size in sizes)


def _mesh(point: Point) -> Iterator[Changes]:
    for axis in ("fsdp", "tensor", "sequence"):
        for size in (2 * point.mesh[axis], point.mesh[axis] // 2):
            if size:
                yield {f"mesh.{name}": n for name, n in {**point.mesh, "data": -1, axis: size}.items()}


def _accumulation(point: Point) -> Iterator[Changes]:
    now = point.config.train.accumulation
    if point.config.model.dropout or (now > 1 and point.config.objective.mask_scope != "step"):
        return
    for size in (2 * now, now // 2):
        if size:
            yield {"train.accumulation": size, "objective.mask_scope": "step"}


# First layers one by one, which gained most by this clock (docs/plan.md), takes minutes to compile and makes room for
# keeping more; then what changes nothing but the compiler's choices; then what costs no arithmetic and frees memory; then what
# trades memory for arithmetic; last what splits the work otherwise, which seldom pays where the step fits.
AXES = (
    Axis("layers", ("model.scan_layers",), _layers),
    Axis("XLA options", ("train.compiler_options",), _options),
    Axis("optimiser state", ("train.shard_optimizer",), _state),
    Axis("loss chunk", ("objective.chunk",), _chunk),
    Axis("remat", ("model.remat",), _remat),
    Axis("attention block", ("model.attention_block",), _block),
    Axis("mesh", ("mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor"), _mesh),
    Axis("accumulation", ("train.accumulation", "objective.mask_scope"), _accumulation),
)


def settings(config: ml_collections.ConfigDict) -> Changes:
    """What a config has in the fields of all axes."""
    return {field: get_field(config, field) for axis in AXES for field in axis.fields}
