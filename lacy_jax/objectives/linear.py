"""Statistics of the output distribution without its logits: lse_V, z[target] and max_z, chunk by chunk.

Every loss of the method is a function of (lse_V, z[target], c), so the vocabulary is only touched here. The forward
pass keeps only lse_V; the backward pass recomputes each chunk of logits, forms its gradient and adds it to the kernel's
gradient in float32. Temporary memory is a few chunks of [tokens, V] plus one [V, D].

Where the logits are small beside the machine's memory they may be kept instead (`keep`), as one chunk.

Chunks are cut along T, never along B: data-parallel devices split the batch, so every chunk is spread over all of them.
Under `jax.set_mesh` the loop runs per shard of the tokens (`jax.shard_map` over the axes that split the batch and its
rows; the other axes are left to the compiler), so the kernel is gathered once before the loop and its gradient reduced
once after it, instead of once per chunk. The gradient of a head of its own is scattered over the axis that splits the
parameters, so that each device gets only the part that it keeps. If the head is the embedding, XLA:TPU adds the gradient of
the lookup first and exchanges both at once, which is less than to scatter each. A kernel that is sharded over V on another axis needs only small reductions
over V.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float, Int32

# Mesh axes that split the batch and its rows, if they exist.
BATCH_AXES = ("data", "fsdp")
PARAMETER_AXIS = "fsdp"  # The one of them that splits parameters, too: a kernel along D.
ROW_AXES = ("sequence",)
# Size of one float32 chunk of logits on one device: large enough for efficient matmuls, small beside a model. A GPU needs
# more of them at a time (docs/results/gpu.md: 10.2 ms instead of 16.7).
CHUNK_BYTES = 48 << 20
GPU_CHUNK_BYTES = 256 << 20

Statistics = tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"]]
"""(lse_V, z[target], max_z)."""


def default_chunk(vocab_size: int) -> int:
    """Tokens per chunk and device, so that the chunk's float32 logits take about `CHUNK_BYTES`, or `GPU_CHUNK_BYTES`."""
    size = GPU_CHUNK_BYTES if jax.default_backend() == "gpu" else CHUNK_BYTES
    return max(1, size // (4 * vocab_size))


def linear_statistics(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    targets: Int32[Array, "B T"],
    *,
    chunk: int = 0,
    keep: int = 0,
    tied: bool = True,
) -> Statistics:
    """(lse_V, z[target], max_z) of z = hidden @ kernel.T, each [B, T] float32, never materialising [B, T, V].

    Matmuls run in the dtype of `hidden` with float32 accumulation; the kernel's gradient is accumulated in
    float32. Differentiable in hidden and kernel through lse_V and z[target]; max_z is a constant.

    Args:
      hidden: [B, T, D] or [N, D], float32 or bfloat16.
      kernel: [V, D], float32 or the dtype of `hidden`, in which devices then exchange its gradient; the embedding if the head is tied.
      targets: [B, T] or [N], in [0, V).
      chunk: tokens per chunk and device; 0 = chosen from V.
      keep: if all logits of a device take no more than so many bytes, and no chunk is asked for, they are kept for the
        backward pass: a third of the products less, for that much memory.
      tied: whether the kernel is used elsewhere, too, as the embedding.
    """
    if hidden.ndim == 2:
        lse, z_target, max_z = linear_statistics(
            hidden[None], kernel, targets[None], chunk=chunk, keep=keep, tied=tied
        )
        return lse[0], z_target[0], max_z[0]
    size, vocabulary = targets.size, kernel.shape[0]
    kept = not chunk and 4 * size * vocabulary <= keep * _token_parts(*targets.shape)
    chunk = size if kept else chunk or default_chunk(vocabulary)
    return _linear_statistics(hidden, kernel, targets, chunk, kept, tied)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _linear_statistics(
    hidden: Array, kernel: Array, targets: Array, chunk: int, kept: bool, tied: bool
) -> Statistics:
    return _forward(hidden, kernel, targets, chunk, kept, tied)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, chunk: int, kept: bool, tied: bool
) -> tuple[Statistics, tuple[Array, ...]]:
    del tied  # It is for the backward pass.

    def kept_statistics(z: Array, targets: Array) -> tuple[Array, ...]:
        lse, max_z = log_sum_exp(z)
        # A CPU would write the products with the one-hot before it sums them.
        return lse, jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0], max_z, z

    statistics = kept_statistics if kept else chunk_statistics
    lse, z_target, max_z, *logits = over_chunks(statistics, hidden, kernel, targets, chunk)
    return (lse, z_target, max_z), (hidden, kernel, targets, lse, *logits)


def _backward(
    chunk: int, kept: bool, tied: bool, saved: tuple[Array, ...], cotangents: Statistics
) -> tuple[Array, Array, None]:
    """dz = d_lse * softmax(z) + d_target * onehot(target), so d hidden = dz W and d kernel = dz^T hidden."""
    hidden, kernel, targets, lse, *logits = saved
    tokens, axes = _token_split(*hidden.shape[:2])
    scattered = not tied and _scatters(axes, kernel.shape[1])
    rest = tuple(axis for axis in axes if not (scattered and axis == PARAMETER_AXIS))

    def local(kernel: Array, *per_token: Array) -> tuple[Array, Array]:
        narrow = kernel.astype(hidden.dtype)

        def one(total: Array | None, part: tuple[Array, ...]) -> tuple[Array, Array]:
            h, t, lse, d_lse, d_target, *logits = part
            z = logits[0] if kept else chunk_logits(h, narrow)
            d_z = d_lse[..., None] * jnp.exp(z - lse[..., None])
            d_z = (d_z + jnp.where(is_target(z, t), d_target[..., None], 0.0)).astype(h.dtype)
            d_h = jnp.einsum("bcv,vd->bcd", d_z, narrow, preferred_element_type=jnp.float32)
            if kept and h.dtype == jnp.float32:
                # By rows of tokens: over two axes, a CPU multiplies only after it has turned all of d_z.
                d_k = jnp.einsum("nv,nd->vd", d_z.reshape(-1, d_z.shape[-1]), h.reshape(-1, h.shape[-1]))
            else:
                d_k = jnp.einsum("bcv,bcd->vd", d_z, h, preferred_element_type=jnp.float32)
            return d_k if total is None else total + d_k, d_h.astype(h.dtype)

        start = None
        if _chunks(per_token[0].shape, chunk) > 1:
            start = jnp.zeros(kernel.shape, jnp.float32)
            if axes:
                start = lax.pcast(start, axes, to="varying")
        total, d_hidden = _scan_chunks(one, start, per_token, chunk)
        total = total.astype(kernel.dtype)  # As it was gathered, so its gradient is exchanged.
        return _summed(total, rest, scattered) if axes else total, d_hidden

    if axes:
        specs = (jax.P(), *[tokens] * (5 + len(logits)))
        out = (jax.P(None, PARAMETER_AXIS) if scattered else jax.P(), tokens)
        local = jax.shard_map(local, in_specs=specs, out_specs=out, axis_names=set(axes))
    d_kernel, d_hidden = local(kernel, hidden, targets, lse, *cotangents[:2], *logits)
    return d_hidden, d_kernel, None


_linear_statistics.defvjp(_forward, _backward)


def chunk_logits(hidden: Float[Array, "B C D"], kernel: Float[Array, "V D"]) -> Float[Array, "B C V"]:
    """Float32 base logits of one chunk; both inputs have the compute dtype."""
    return jnp.einsum("bcd,vd->bcv", hidden, kernel, preferred_element_type=jnp.float32)


def chunk_statistics(z: Float[Array, "B C V"], targets: Int32[Array, "B C"]) -> Statistics:
    """(lse_V, z[target], max_z) of one chunk. The one-hot sum stays local where V is sharded."""
    lse, max_z = log_sum_exp(z)
    z_target = jnp.sum(jnp.where(is_target(z, targets), z, 0.0), axis=-1)
    return lse, z_target, max_z


def log_sum_exp(z: Float[Array, "*S V"]) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """(lse_V, max_z)."""
    max_z = jnp.max(z, axis=-1)
    return max_z + jnp.log(jnp.sum(jnp.exp(z - max_z[..., None]), axis=-1)), max_z


def is_target(z: Float[Array, "B C V"], targets: Int32[Array, "B C"]) -> Array:
    """True at [b, c, targets[b, c]], [B, C, V]."""
    return lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) == targets[..., None]


def over_chunks(
    statistics: Callable[[Array, Array], tuple[Array, ...]],
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    targets: Int32[Array, "B T"],
    chunk: int,
) -> tuple[Array, ...]:
    """Apply `statistics(logits [b, c, V], targets [b, c]) -> arrays [b, c]` chunk by chunk; returns arrays [B, T]."""

    def local(hidden: Array, kernel: Array, targets: Array) -> tuple[Array, ...]:
        narrow = kernel.astype(hidden.dtype)

        def one(nothing: None, part: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
            return nothing, statistics(chunk_logits(part[0], narrow), part[1])

        return _scan_chunks(one, None, (hidden, targets), chunk)[1]

    tokens, axes = _token_split(*hidden.shape[:2])
    if axes:
        specs = (tokens, jax.P(), tokens)
        local = jax.shard_map(local, in_specs=specs, out_specs=tokens, axis_names=set(axes))
    return local(hidden, kernel, targets)


def _scan_chunks(step: Callable, carry: Any, per_token: tuple[Array, ...], chunk: int) -> tuple[Any, Any]:
    """`lax.scan` of `step` over chunks along T with about `chunk` tokens each; chunks are [b, c, ...].

    T is padded with zeros to whole chunks: padded tokens have zero cotangents, and their outputs are cut off.
    """
    batch, time = per_token[0].shape[:2]
    chunks = _chunks(per_token[0].shape, chunk)
    length = -(-time // chunks)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * length - time), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(batch, chunks, length, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * length, *x.shape[3:])[:, :time]

    if chunks == 1:
        return step(carry, per_token)
    carry, out = lax.scan(step, carry, jax.tree.map(cut, per_token))
    return carry, jax.tree.map(join, out)


def _chunks(shape: tuple[int, ...], chunk: int) -> int:
    """Into how many chunks of about `chunk` tokens [B, T, ...] is cut."""
    batch, time = shape[:2]
    return -(-time // max(1, min(time, chunk // batch)))


def _summed(gradient: Array, axes: tuple[str, ...], scattered: bool) -> Array:
    """The sum of a kernel's gradient [V, D] over `axes`, and if `scattered` over `PARAMETER_AXIS`, by parts of D.

    On a CPU by way of float32: of 16 bits, XLA aborts there where other axes are left to the compiler.
    """

    def exchanged(x: Array) -> Array:
        if scattered:
            x = lax.psum_scatter(x, PARAMETER_AXIS, scatter_dimension=1, tiled=True)
        return lax.psum(x, axes) if axes else x

    def widened(x: Array) -> Array:
        return exchanged(x.astype(jnp.float32)).astype(x.dtype)

    return lax.platform_dependent(gradient, cpu=widened, default=exchanged)


def _token_parts(batch: int, time: int) -> int:
    """Among how many devices [B, T] is split."""
    axes = _token_split(batch, time)[1]
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)


def _scatters(axes: tuple[str, ...], size: int) -> bool:
    """Whether a kernel's gradient, D = `size` wide, is scattered: its tokens are split over `PARAMETER_AXIS`, which divides D."""
    return PARAMETER_AXIS in axes and size % jax.sharding.get_abstract_mesh().shape[PARAMETER_AXIS] == 0


def _token_split(batch: int, time: int) -> tuple[jax.P, tuple[str, ...]]:
    """The partition spec for splitting [B, T] over the current mesh, and its mesh axes; only axes that divide B or T."""
    mesh = jax.sharding.get_abstract_mesh()
    split = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual and mesh.shape[name] > 1
    }

    def dividing(names: tuple[str, ...], size: int) -> tuple[str, ...]:
        names = tuple(name for name in names if name in split)
        return names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()

    rows, columns = dividing(BATCH_AXES, batch), dividing(ROW_AXES, time)
    return jax.P(rows or None, columns or None), (*rows, *columns)
