"""Causal attention within segments, by platform, with a plain reference twin.

| name | where | how |
|---|---|---|
| `reference` | anywhere | einsum, mask, softmax: what the others are tested against |
| `xla` | anywhere | blocks of queries against the keys up to them: skips most of the upper triangle |
| `cudnn` | NVIDIA GPU, bfloat16 | `jax.nn.dot_product_attention(implementation="cudnn")` |
| `splash` | TPU | Pallas splash attention; T a multiple of 128 |
| `auto` | | the fast one of this process's platform, where shape and type allow it; else `xla` |

`auto` asks for the platform of the process; compile for another platform (a TPU from a CPU machine) by name.

A query sees the keys at or before its own place in the row that share its segment id. Padding is segment 0:
it sees padding only, so its outputs are finite and reach nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from lacy_jax.errors import ConfigError
from lacy_jax.models.axes import Partition

SPLASH_BLOCK = 128
_MASKED = jnp.finfo(jnp.float32).min


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    segment_ids: Int32[Array, "B T"],
    implementation: str = "auto",
    partition: Partition | None = None,
) -> Float[Array, "B T H K"]:
    """Scaled dot-product attention, causal and confined to segments; scores and softmax in float32.

    Args:
      q: queries; H heads of width K.
      k, v: keys and values; G heads, G divides H: query head h uses key head h // (H / G).
      segment_ids: 0 = padding.
      implementation: a name of the table above.
      partition: needed by `splash` on several devices, whose kernel the compiler can't split by itself.

    Returns:
      Mixed values, in the dtype of `v`.

    Raises:
      ConfigError: `implementation` cannot serve these shapes or this platform.
    """
    if implementation == "auto":
        implementation = choose(jax.default_backend(), q.shape[1], q.shape[3], q.dtype)
    if implementation == "cudnn":
        check_platform(implementation, jax.default_backend())
    fn = _IMPLEMENTATIONS[implementation]
    if implementation == "splash" and partition is not None:
        queries, keys = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
        fn = partition.per_shard(fn, (queries, keys, keys, ("batch", None)), queries)
    return fn(q, k, v, segment_ids)


def choose(platform: str, length: int, head_dim: int, dtype: jax.typing.DTypeLike) -> str:
    """What `auto` means on `platform` ("cpu", "gpu", "tpu") for rows of `length` and heads of `head_dim`."""
    if platform == "tpu" and length % SPLASH_BLOCK == 0:
        return "splash"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "xla"


def check_platform(implementation: str, platform: str) -> None:
    """Check that `config.model.attention = implementation` can run on `platform` ("cpu", "gpu", "tpu").

    Raises:
      ConfigError: it can't.
    """
    needed = {"cudnn": "gpu", "splash": "tpu"}.get(implementation, platform)
    if platform != needed:
        raise ConfigError(
            f"config.model.attention = {implementation!r}: needs a {needed}, not a {platform}; use 'auto'"
        )


def segment_mask(segment_ids: Int32[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """[b, 0, i, j] is True where query i may see key j: same segment and j <= i."""
    length = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & jnp.tril(jnp.ones((length, length), bool)))[:, None]


def _reference(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """The definition, written plainly: what the fast ones must agree with."""
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], -1, width)
    scores = jnp.einsum("bsgrk,btgk->bgrst", grouped, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = jnp.where(segment_mask(segment_ids)[:, :, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, v).reshape(batch, length, heads, width)


def _xla(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """Four blocks of queries (of at least 64): 5/8 of the score matrix, and less of it alive at a time.

    Two more things help on a CPU: heads before time, so that the products are plain batched matmuls, and
    dividing by the softmax's sum after the second product, on K columns rather than T.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)  # B G R T K
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # B G T K
    block = max(64, -(-length // 256) * 64)
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        scores = jnp.einsum(
            "bgrsk,bgtk->bgrst", q[:, :, :, start:end], k[:, :, :end], preferred_element_type=jnp.float32
        )
        mask = segment_ids[:, start:end, None] == segment_ids[:, None, :end]
        mask &= jnp.arange(start, end)[:, None] >= jnp.arange(end)
        scores = jnp.where(mask[:, None, None], scores * width**-0.5, _MASKED)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum(
            "bgrst,bgtk->bgrsk", weights.astype(v.dtype), v[:, :, :end], preferred_element_type=jnp.float32
        )
        outputs.append((mixed / weights.sum(-1, keepdims=True)).astype(v.dtype))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _cudnn(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ConfigError(
            f"config.model.attention = 'cudnn': needs config.model.dtype 'bfloat16', not {q.dtype}"
        )
    mask = segment_mask(segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def _splash(q: Array, k: Array, v: Array, segment_ids: Array, interpret: bool = False) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention  # Pallas: slow to import, used on TPU only.

    length = q.shape[1]
    if length % SPLASH_BLOCK:
        raise ConfigError(
            f"config.model.attention = 'splash': rows of {length} tokens are no multiple of {SPLASH_BLOCK}; "
            "change config.input.seq_len or use 'auto'"
        )
    kernel = _splash_kernel(q.shape[2], length, interpret)
    ids = splash_attention.SegmentIds(segment_ids, segment_ids)
    scaled = q * q.shape[3] ** -0.5
    mixed = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (scaled, k, v)), ids)
    return mixed.swapaxes(1, 2).astype(v.dtype)


@functools.cache
def _splash_kernel(heads: int, length: int, interpret: bool) -> Callable[..., Array]:
    from jax.experimental.pallas.ops.tpu import splash_attention

    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    with jax.ensure_compile_time_eval():  # The kernel holds mask arrays: made once, outside of any trace.
        return splash_attention.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)


_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": _reference,
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
}
