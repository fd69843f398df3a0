"""The mesh, and the one table that maps the logical axes of parameters to it.

The mesh has four axes. `data` replicates the parameters and splits the batch; `fsdp` splits the batch *and* the
parameters (each device holds a slice and gathers the rest when needed); `sequence` splits long rows of a batch
(`models.context_parallel`) and replicates the parameters; `tensor` splits heads, MLP and vocabulary. With several TPU
slices only `data` spans them, because the network between slices is slow.

A model names the axes of each parameter by meaning ("vocab", "embed", ...) and does not know the mesh; only this module
maps names to mesh axes. Optimiser moments are sharded like their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from lacy_jax.dataset.batch import Batch
from lacy_jax.errors import ConfigError
from lacy_jax.models.axes import Axes
from lacy_jax.objectives.linear import BATCH_AXES

# The last axis has the closest neighbours: `tensor`, which exchanges most data most often.
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
TOKENS = jax.P(BATCH_AXES, "sequence")  # The sharding of every array [B, T].

# Logical axis -> mesh axis. None = replicated along this axis.
RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "feature": None,  # Norm scales, biases and the CALL head are too small to be worth a gather.
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "position": None,
    "layers": None,
    "query": None,
}

# What else `train.shard_optimizer` splits over `data`: the outermost in memory. Of a dimension further in, the TPU compiler
# gathers the parts side by side as they come, and then copies all of it once more into the order that the step reads. That
# order has heads outside, wherever they stand.
HEADS = frozenset({"heads", "kv_heads"})
SPLIT_OVER_DATA = HEADS | {"vocab", "position", "embed", "mlp"}

# A dimension that is not a multiple of its mesh axis is an error, except for these: with grouped queries there may be
# fewer key/value heads than tensor shards, and then every shard keeps all of them.
REPLICATE_IF_INDIVISIBLE = frozenset({"kv_heads"})


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
      config: the group `mesh` of a run config: sizes of data, fsdp, sequence and tensor; one may be -1 = all remaining devices.
      devices: the devices to use; default all.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: int(config[axis]) for axis in MESH_AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(
                f"config.mesh.{axis} = {size}: must be at least 1, or -1 for all remaining devices"
            )
    if len(open_axes) > 1:
        raise ConfigError(f"config.mesh: only one of {', '.join(open_axes)} may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(devices) % fixed == 0:
        sizes[open_axes[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        asked = " x ".join(f"{axis}={config[axis]}" for axis in MESH_AXES)
        raise ConfigError(
            f"config.mesh: {asked} does not fit the {len(devices)} devices of this run; choose sizes whose product is "
            f"{len(devices)}, or -1 for one of them and divisors for the others"
        )
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform == "tpu" and slices > 1:
        return _multislice_mesh(devices, shape, slices)
    try:
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    except NotImplementedError:
        # JAX raises this for sizes such as fsdp = 16 on a torus of 8 x 8, where an axis of the torus must be split.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def _multislice_mesh(devices: Sequence[jax.Device], shape: tuple[int, ...], slices: int) -> Mesh:
    """A mesh in which only `data` spans slices, so that only gradients cross the slow network, once per step.

    Raises:
      ConfigError: the data axis is not a multiple of the slices.
    """
    data, *others = shape
    if data % slices:
        raise ConfigError(
            f"config.mesh.data = {data}: must be a multiple of the {slices} slices; fsdp, sequence and tensor stay inside a slice"
        )
    ones = (1,) * len(others)
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *others), (slices, *ones), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def partition_spec(
    logical: Sequence[str | None], shape: Sequence[int], mesh: Mesh, name: str = "parameter"
) -> jax.P:
    """The partition spec of one parameter.

    Args:
      logical: the meaning of each dimension, such as ("layers", "embed", "heads", "head_dim").
      shape: the size of each dimension.
      mesh: the mesh.
      name: names the parameter in errors.

    Raises:
      ConfigError: an unknown logical axis, two dimensions on one mesh axis, or a size that is not a multiple of its mesh axis.
    """
    if len(logical) != len(shape):
        raise ConfigError(
            f"{name}: {len(shape)} dimensions {tuple(shape)} but {len(logical)} axis names {tuple(logical)}"
        )
    spec: list[str | None] = []
    for axis, size in zip(logical, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ConfigError(f"{name}: logical axis {axis!r} has no rule; known: {', '.join(sorted(RULES))}")
        target = RULES[axis] if axis is not None else None
        shards = mesh.shape[target] if target is not None else 1
        if shards == 1:  # Nothing to split; this keeps the specification short and comparable.
            target = None
        elif size % shards != 0:
            if axis not in REPLICATE_IF_INDIVISIBLE:
                raise ConfigError(
                    f"config.mesh.{target} = {shards} does not divide {axis} = {size} of {name}: choose a divisor of {size}"
                )
            target = None
        if target is not None and target in spec:
            raise ConfigError(f"{name}: two dimensions of {tuple(logical)} would lie on mesh axis {target!r}")
        spec.append(target)
    while spec and spec[-1] is None:
        spec.pop()
    return jax.P(*spec)


def parameter_shardings(abstract_params: Any, logical_axes: Any, mesh: Mesh, over_data: bool = False) -> Any:
    """A pytree of `NamedSharding` like `abstract_params`.

    Args:
      abstract_params: a pytree of leaves with a `.shape`.
      logical_axes: the same structure with a tuple of axis names for each leaf.
      mesh: the mesh.
      over_data: also split over `data` what would be the same on all its devices (`train.shard_optimizer`).

    Raises:
      ConfigError: see `partition_spec`; names the parameter.
    """
    leaves, treedef = jax.tree.flatten_with_path(abstract_params)
    axes = jax.tree.leaves(logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    if len(axes) != len(leaves):
        raise ConfigError(f"{len(leaves)} parameters but {len(axes)} entries of logical axes")
    shardings = [
        NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, jax.tree_util.keystr(path)))
        for (path, leaf), names in zip(leaves, axes, strict=True)
    ]
    if over_data:
        shardings = [
            NamedSharding(mesh, _over_data(where.spec, names, leaf.shape, mesh))
            for where, names, (_, leaf) in zip(shardings, axes, leaves, strict=True)
        ]
    return jax.tree.unflatten(treedef, shardings)


def _over_data(spec: jax.P, logical: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> jax.P:
    """`spec` with one dimension of `SPLIT_OVER_DATA` also split over `data`: the first that it divides, heads before others."""
    data = mesh.shape["data"]
    if "embed" not in logical or data == 1:  # Vectors are small.
        return spec
    parts: list[Any] = [*spec, *[None] * (len(shape) - len(spec))]
    for place in sorted(range(len(shape)), key=lambda i: logical[i] not in HEADS):
        part = parts[place]
        shards = data * (mesh.shape[part] if part else 1)
        if logical[place] in SPLIT_OVER_DATA and shape[place] % shards == 0:
            parts[place] = (part, "data") if part else "data"
            break
    while parts and parts[-1] is None:
        parts.pop()
    return jax.P(*parts)


# Activations: logical axis -> mesh axes.
ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "sequence": ("sequence",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
}


class ActivationPartition:
    """The sharding of activations, given to a model so that it need not know the mesh (`models.axes.Partition`).

    Without it the compiler may apply the split of a weight's `embed` axis to the activations, and then compute the whole
    batch on every device.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh

    def _spec(self, axes: Axes) -> jax.P:
        return jax.P(*(ACTIVATION_RULES[axis] or None if axis is not None else None for axis in axes))

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """`x` with a sharding constraint for `axes`."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, self._spec(axes)))

    def parts(self, axis: str) -> int:
        """The number of parts that `axis` is split into."""
        return math.prod(self._mesh.shape[name] for name in ACTIVATION_RULES[axis])

    def mesh_axis(self, axis: str) -> str:
        """The mesh axis of `axis`."""
        (name,) = ACTIVATION_RULES[axis]
        return name

    def per_shard(
        self, fn: Callable[..., jax.Array], in_axes: Sequence[Axes], out_axes: Axes
    ) -> Callable[..., jax.Array]:
        """`fn` applied to each device's part of its arguments."""
        in_specs = tuple(self._spec(axes) for axes in in_axes)
        return jax.shard_map(
            fn, mesh=self._mesh, in_specs=in_specs, out_specs=self._spec(out_axes), check_vma=False
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding in which every device holds the whole array."""
    return NamedSharding(mesh, jax.P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch [B, T]: rows over data and fsdp, each row over sequence."""
    return NamedSharding(mesh, TOKENS)


def check_batch_shape(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Check that every micro-batch splits evenly over the devices of data and fsdp, and its rows over those of sequence.

    Raises:
      ConfigError: it does not.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.input.batch_size // config.train.accumulation
    if rows % shards != 0:
        raise ConfigError(
            f"config.input.batch_size = {config.input.batch_size}: a micro-batch has {rows} sequences "
            f"(train.accumulation = {config.train.accumulation}), which data x fsdp = {shards} devices cannot share evenly; "
            f"choose a multiple of {shards * config.train.accumulation}, or move devices to config.mesh.tensor"
        )
    parts = mesh.shape["sequence"]
    if parts > 1 and config.input.seq_len % (2 * parts) != 0:
        raise ConfigError(
            f"config.input.seq_len = {config.input.seq_len}: config.mesh.sequence = {parts} splits rows into {2 * parts} blocks, "
            f"two per device; choose a multiple of {2 * parts}"
        )


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads the `index`-th of `count` equal, contiguous parts of a batch's rows.

    Processes that are joined by an axis without rows (`sequence`, `tensor`) hold the same rows, or parts of them, and
    read the same share.

    Raises:
      ConfigError: the mesh gives a process rows that are not such a part.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    held: dict[int, set[int]] = {}
    places: Mapping[Any, Any] = NamedSharding(mesh, jax.P(BATCH_AXES)).devices_indices_map((parts,))
    for device, (rows,) in places.items():
        held.setdefault(device.process_index, set()).update(range(parts)[rows])
    shares = sorted({tuple(sorted(own)) for own in held.values()})
    size = len(shares[0])
    if [part for share in shares for part in share] != list(range(parts)) or {len(s) for s in shares} != {
        size
    }:
        raise ConfigError(
            f"config.mesh: processes would read overlapping or scattered rows ({shares}); choose data and fsdp so that they "
            "fill whole processes"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Turn this host's rows into global arrays.

    Args:
      batch: numpy arrays [B / shares, T, ...]: the contiguous rows of the global batch that this process reads (`row_share`).
      mesh: the mesh.

    Returns:
      The batch as `jax.Array`s [B, T, ...], rows over data and fsdp, each row over sequence. With one process this is a plain
      transfer.
    """
    sharding = batch_sharding(mesh)
    share, shares = row_share(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        count, *others = rows.shape

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            own, *rest = index or (slice(None),)
            first = (own.start or 0) - share * count
            wanted = (count * shares if own.stop is None else own.stop) - (own.start or 0)
            return rows[first : first + wanted, *rest]

        return jax.make_array_from_callback((count * shares, *others), sharding, part)

    with jax.transfer_guard("allow"):  # The only transfer to devices that is allowed in a step.
        return jax.tree.map(put, batch)
