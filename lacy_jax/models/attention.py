"""Attention under a `Mask`: one implementation per platform, and a plain reference (`ATTENTIONS`).

`auto` chooses by the platform of the process. To compile for another platform (for a TPU on a CPU machine), name the
implementation.

The mask decides what a query sees (`lacy_jax.models.mask`). Padding is segment 0 and sees only padding, so its outputs
are finite and affect nothing. Every implementation takes some queries of a row and the keys up to the last of them, so
all of them also work for rows that are spread over several devices (`context_parallel`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lacy_jax.errors import ConfigError
from lacy_jax.models.axes import Partition
from lacy_jax.models.context_parallel import Attend, gathered_attention
from lacy_jax.models.mask import KEY_BLOCK, MASKED, Mask
from lacy_jax.registry import Registry

SPLASH_BLOCK = 512
"""The kernel's own default is 128; docs/plan.md has both, by the compiler's estimate."""
FUSED_BLOCKS = 8
"""The fused backward kernel keeps a gradient of all queries for each block of keys; beyond so many blocks that is too much."""
KERNEL_RESIDUALS = "attention_residuals"
"""Name of what the backward pass of `xla` and `splash` needs of the forward one, for remat policies."""


@jax.named_scope("attention")
def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    mask: Mask,
    implementation: str = "auto",
    partition: Partition | None = None,
    block: int = SPLASH_BLOCK,
) -> Float[Array, "B T H K"]:
    """Scaled dot-product attention under a mask; scores and softmax in float32.

    Args:
      q: queries; H heads of width K.
      k, v: keys and values; G heads, G divides H: query head h uses key head h // (H / G).
      mask: the mask of whole rows.
      implementation: a name in `ATTENTIONS`.
      partition: how activations are sharded. The compiler cannot split the kernel of `splash`, so it runs on each
        device's part, as do all implementations when rows are split over devices (`context_parallel`: T must be a
        multiple of twice the number of parts; for `splash`, of 256 times that number).
      block: the most queries and keys that `splash` works on at once.

    Returns:
      Mixed values, in the dtype of `v`.

    Raises:
      ConfigError: `implementation` does not support these shapes or this platform.
    """
    parts = 1 if partition is None else partition.parts("sequence")
    if implementation == "auto":
        implementation = choose(jax.default_backend(), q.shape[1], q.shape[3], q.dtype, parts)
    if implementation == "cudnn":
        check_platform(implementation, jax.default_backend())
    attend = ATTENTIONS[implementation].attend
    assert attend is not None
    if implementation == "splash":
        attend = functools.partial(_splash, block=block)
    if partition is None or (parts == 1 and implementation != "splash"):
        return attend(q, k, v, mask)
    if k.shape[2] % partition.parts(
        "kv_heads"
    ):  # Too few key heads to split: repeat them, one per query head.
        k, v = (jnp.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    queries, keys = ("batch", "sequence", "heads", None), ("batch", "sequence", "kv_heads", None)
    fn = attend if parts == 1 else gathered_attention(attend, partition.mesh_axis("sequence"), parts)
    return partition.per_shard(fn, (queries, keys, keys, ("batch", "sequence")), queries)(q, k, v, mask)


def choose(platform: str, length: int, head_dim: int, dtype: jax.typing.DTypeLike, parts: int = 1) -> str:
    """What `auto` chooses on `platform` ("cpu", "gpu", "tpu") for rows of `length`, split into `parts`."""
    if platform == "tpu" and length % (KEY_BLOCK * (1 if parts == 1 else 2 * parts)) == 0:
        return "splash"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "xla"


def check_platform(implementation: str, platform: str) -> None:
    """Check that `config.model.attention = implementation` can run on `platform` ("cpu", "gpu", "tpu").

    Raises:
      ConfigError: it cannot.
    """
    needed = ATTENTIONS[implementation].platform or platform
    if platform != needed:
        raise ConfigError(
            f"config.model.attention = {implementation!r}: needs a {needed}, not a {platform}; use 'auto'"
        )


def _reference(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """The plain definition, which the fast implementations must agree with."""
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], -1, width)
    scores = jnp.einsum("bsgrk,btgk->bgrst", grouped, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = jnp.where(mask.array(length, k.shape[1])[:, :, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, v).reshape(batch, length, heads, width)


def _xla(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """Up to four blocks of queries (of at least 64), each against the keys it can reach. This computes 5/8 of the score
    matrix, or less under a window, and keeps less of it in memory at a time.

    The rest serves a CPU. Heads come before time and the queries of one key head stand below each other, so that the
    products are plain batched matmuls; the division by the softmax's sum comes after the second product, on K columns
    instead of T. The backward pass keeps one number per query and makes the scores again, which costs less than to
    write them and read them back, and it makes the gradients of keys and values transposed, because a product over
    the rows of both sides is three times as slow there.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)  # B G R T K
    mixed = _blocks(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


@jax.custom_vjp
def _blocks(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """Queries [B, G, R, T, K], keys and values [B, G, S, K] -> mixed values [B, G, R, T, K]."""
    return _blocks_forward(q, k, v, mask)[0]


def _blocks_forward(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, tuple[Any, ...]]:
    outputs, logs = [], []
    for part, queries, reach in _reaches(mask, q.shape[3]):
        scores = _scores(q[:, :, :, queries], k[:, :, reach], part)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        mixed = _product("bgmt,bgtk->bgmk", _folded(weights.astype(v.dtype)), v[:, :, reach])
        outputs.append((mixed.reshape(*scores.shape[:-1], -1) / total).astype(v.dtype))
        logs.append(top + jnp.log(total))
    out, log_sums = (
        checkpoint_name(jnp.concatenate(parts, axis=3), KERNEL_RESIDUALS) for parts in (outputs, logs)
    )
    return out, (q, k, v, mask, out, log_sums)


def _blocks_backward(saved: tuple[Any, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    """With weights P = exp(S - log sum) and dP = d_out v^T: dS = P (dP - sum(d_out out)), d_v = P^T d_out."""
    q, k, v, mask, out, log_sums = saved
    scale = q.shape[-1] ** -0.5
    means = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_q: list[Array] = []
    d_k, d_v = (jnp.zeros((*a.shape[:2], a.shape[3], a.shape[2]), jnp.float32) for a in (k, v))
    for part, queries, reach in _reaches(mask, q.shape[3]):
        rows, d_rows = q[:, :, :, queries], _folded(d_out[:, :, :, queries])
        scores = _scores(rows, k[:, :, reach], part)
        weights = jnp.exp(scores - log_sums[:, :, :, queries])
        d_weights = _product("bgmk,bgtk->bgmt", d_rows, v[:, :, reach]).reshape(scores.shape)
        d_scores = _folded((weights * (d_weights - means[:, :, :, queries]) * scale).astype(q.dtype))
        d_q.append(_product("bgmt,bgtk->bgmk", d_scores, k[:, :, reach]).reshape(rows.shape).astype(q.dtype))
        d_v = d_v.at[..., reach].add(_product("bgmt,bgmk->bgkt", _folded(weights.astype(v.dtype)), d_rows))
        d_k = d_k.at[..., reach].add(_product("bgmt,bgmk->bgkt", d_scores, _folded(rows)))
    return (
        jnp.concatenate(d_q, axis=3),
        d_k.swapaxes(2, 3).astype(k.dtype),
        d_v.swapaxes(2, 3).astype(v.dtype),
        None,
    )


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _reaches(mask: Mask, length: int) -> Iterator[tuple[Mask, slice, slice]]:
    """Blocks of the queries: (their mask, the queries, the keys that they can reach)."""
    block = max(64, -(-length // 256) * 64)
    for first in range(0, length, block):
        last = min(first + block, length)
        part, reach = mask.part(first, last)
        yield part, slice(first, last), reach


def _scores(q: Array, k: Array, mask: Mask) -> Array:
    """Masked float32 scores [B, G, R, Q, S]."""
    scores = _product("bgmk,bgtk->bgmt", _folded(q), k).reshape(*q.shape[:4], k.shape[2])
    seen = mask.array(q.shape[3], k.shape[2])[:, :, None]
    return jnp.where(seen, scores * q.shape[4] ** -0.5, MASKED)


def _folded(rows: Array) -> Array:
    """[B, G, R, Q, ...] -> [B, G, R Q, ...]: all queries of a key head."""
    return rows.reshape(*rows.shape[:2], -1, rows.shape[4])


def _product(form: str, a: Array, b: Array) -> Array:
    return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def _cudnn(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ConfigError(
            f"config.model.attention = 'cudnn': needs config.model.dtype 'bfloat16', not {q.dtype}"
        )
    seen = mask.array(q.shape[1], k.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=mask.start == 0, implementation="cudnn")


def _splash(
    q: Array, k: Array, v: Array, mask: Mask, block: int = SPLASH_BLOCK, interpret: bool = False
) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention  # Pallas: slow to import, used on TPU only.

    length, keys = q.shape[1], k.shape[1]
    if length % KEY_BLOCK:
        raise ConfigError(
            f"config.model.attention = 'splash': rows of {length} tokens (half a device's part if config.mesh.sequence "
            f"splits them) are not a multiple of {KEY_BLOCK}; change config.input.seq_len or use 'auto'"
        )
    bare = dataclasses.replace(mask, segments=None)
    kernel = _splash_kernel(q.shape[2], length, keys, bare, block, interpret)
    assert mask.segments is not None
    ids = splash_attention.SegmentIds(mask.segments[:, mask.start : mask.start + length], mask.segments)
    scaled = q * q.shape[3] ** -0.5
    mixed = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (scaled, k, v)), ids)
    return mixed.swapaxes(1, 2).astype(v.dtype)


@functools.cache
def _splash_kernel(
    heads: int, queries: int, keys: int, mask: Mask, block: int, interpret: bool
) -> Callable[..., Array]:
    from jax.experimental.pallas.ops.tpu import splash_attention

    over_queries, over_keys = splash_block(queries, block), splash_block(keys, block)
    # The fused backward kernel writes a gradient of the queries for each block of keys, to be summed by another pass over
    # memory; with larger blocks there are fewer of them, or one.
    back_queries, back_keys = splash_block(queries, 2 * block), splash_block(keys, 2 * block)
    fused = keys // back_keys <= FUSED_BLOCKS
    if not fused:
        back_queries, back_keys = over_queries, over_keys
    # Time on the lanes: heads are narrower than the 128 lanes of a TPU, so the other way round half of each is padding.
    layout = splash_attention.QKVLayout.SEQ_MINOR
    sizes = splash_attention.BlockSizes(
        block_q=over_queries, block_kv=over_keys, block_q_dkv=back_queries, block_kv_dkv=back_keys,
        block_q_dq=None if fused else over_queries, block_kv_dq=None if fused else over_keys,
        use_fused_bwd_kernel=fused, q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip
    every = splash_attention.MultiHeadMask([mask.splash(queries, keys)] * heads)
    with jax.ensure_compile_time_eval():  # The kernel holds mask arrays, which must not belong to a trace.
        return splash_attention.make_splash_mha(
            every,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
            residual_checkpoint_name=KERNEL_RESIDUALS,
        )


def splash_block(length: int, most: int) -> int:
    """The largest power of two times 128 that divides `length`, a multiple of 128, and is no more than `most`."""
    block = KEY_BLOCK
    while 2 * block <= most and length % (2 * block) == 0:
        block *= 2
    return block


@dataclasses.dataclass(frozen=True)
class Attention:
    """One implementation.

    Attributes:
      name: as in the config field `model.attention`.
      description: one line for help texts and docs.
      attend: attention of some queries to the keys up to the last of them; None for `auto`.
      platform: the only platform that it runs on; "" = any.
    """

    name: str
    description: str
    attend: Attend | None = dataclasses.field(default=None, repr=False)
    platform: str = ""


ATTENTIONS: Registry[Attention] = Registry("attention", (
    Attention("auto", "the fast implementation for this platform if shape and type allow it; else xla"),
    Attention("reference", "anywhere: einsum, mask, softmax; the others are tested against it", _reference),
    Attention("xla", "anywhere: blocks of queries against the keys they can reach; skips most masked scores", _xla),
    Attention("cudnn", "NVIDIA GPU, bfloat16: cuDNN's fused attention", _cudnn, "gpu"),
    Attention("splash", "TPU: Pallas splash attention; rows a multiple of 128 tokens", _splash, "tpu"),
))  # fmt: skip
