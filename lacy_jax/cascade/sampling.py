"""Draws from a model's distribution: they depend on a row's own key and position, not on the rows beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def noise(keys: UInt32[Array, "B K"], position: Int[Array, " B"]) -> Float[Array, " B"]:
    """Uniform [0, 1) numbers that depend on the prompt and the position only: not on batch, steps or other rows.

    MurmurHash3's finaliser: the gate "random" needs no more, and it compiles in no time.
    """
    x = keys[:, -1] ^ (position.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return ((x ^ (x >> 16)) >> 8).astype(jnp.float32) / jnp.float32(1 << 24)


def sample(
    position: Int[Array, " B"],
    z: Float[Array, "B V"],
    keys: UInt32[Array, "B K"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
) -> Int[Array, " B"]:
    """Draw from softmax(z / temperature) with the row's own key: only from the `top_k` largest (0 = all), and of those only
    from the fewest that hold `top_p` of the probability.
    """
    scaled = z / jnp.maximum(temperature, 1e-6)[:, None]
    limited = jnp.any((top_k > 0) | (top_p < 1.0))
    kept = jax.lax.cond(limited, lambda: _likeliest(z, scaled, temperature, top_k, top_p), lambda: scaled)
    own = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), position)
    return jax.vmap(jax.random.categorical)(own, kept).astype(jnp.int32)


def _likeliest(
    z: Float[Array, "B V"],
    scaled: Float[Array, "B V"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
) -> Float[Array, "B V"]:
    """`scaled` (z / temperature), -inf where `top_k` or `top_p` excludes a piece; ties with the last one stay in."""
    size = z.shape[-1]
    descending = -jnp.sort(-z, axis=-1)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)[:, None]
    within = jnp.where(jnp.arange(size) < count, descending, -jnp.inf)
    p = jax.nn.softmax(within / jnp.maximum(temperature, 1e-6)[:, None], axis=-1)
    nucleus = jnp.sum(jnp.cumsum(p, axis=-1) - p < top_p[:, None], axis=-1, keepdims=True)
    count = jnp.where(top_p[:, None] < 1.0, jnp.clip(nucleus, 1, count), count)
    return jnp.where(z >= jnp.take_along_axis(descending, count - 1, axis=1), scaled, -jnp.inf)
