"""Keys and values of past tokens, so that decoding computes each token once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values, one array per layer; slot s of a row holds the token at position s.

    Layers are separate arrays with slots next to the width, so that a step reads each layer without copying. Stacked
    layers with the heads innermost cost five times as much on a CPU (a slice and two transposes of the whole cache per
    step).

    Attributes:
      k, v: L arrays [B, G, M, K] in the compute dtype; B rows, G key/value heads, M slots of width K.
    """

    k: tuple[Float[Array, "B G M K"], ...]
    v: tuple[Float[Array, "B G M K"], ...]

    @property
    def max_len(self) -> int:
        """M, the number of tokens that a row can hold."""
        return self.k[0].shape[2]


def init_cache(cfg: ModelConfig, batch: int, max_len: int) -> Cache:
    """An empty cache for `batch` rows of at most `max_len` tokens.

    Raises:
      ConfigError: `max_len` exceeds the model's context.
    """
    if not 1 <= max_len <= cfg.max_seq_len:
        raise ConfigError(
            f"a cache of {max_len} tokens: the model's context is {cfg.max_seq_len}; generate fewer tokens or "
            "train with a longer config.model.max_seq_len"
        )
    shape = (batch, cfg.n_kv_heads, max_len, cfg.head_dim)

    def empty() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.n_layers))

    return Cache(empty(), empty())


def grow(cache: Cache, max_len: int) -> Cache:
    """The cache with room for `max_len` tokens per row; its tokens keep their slots."""
    more = [(0, 0), (0, 0), (0, max_len - cache.max_len), (0, 0)]
    return jax.tree.map(lambda a: jnp.pad(a, more), cache)


def cached_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B G M K"],
    v: Float[Array, "B G M K"],
    mask: Bool[Array, "B 1 S M"],
) -> Float[Array, "B S H K"]:
    """Attention over one layer of the cache, under any mask; scores and softmax in float32.

    Queries that share keys are made rows of one matrix for each (row, key head) first. Written as one contraction into
    [B, S, H, K], the second product takes XLA's CPU backend ten times as long for a chunk of 8 tokens.
    """
    batch, queries, heads, width = q.shape
    groups, slots = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, queries, groups, -1, width).transpose(0, 2, 3, 1, 4)  # B G R S K
    flat = grouped.reshape(batch, groups, -1, width)
    scores = jnp.einsum("bgqk,bgmk->bgqm", flat, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(*grouped.shape[:4], slots)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(batch, groups, -1, slots)
    mixed = jnp.einsum("bgqm,bgmk->bgqk", weights, v).reshape(grouped.shape)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width)


def check_fits_context(
    prompt_tokens: int, cfg: ModelConfig, new_tokens: int = 1, what: str = "prompt"
) -> None:
    """Check that a prompt and the tokens to be generated after it fit into the context.

    Args:
      prompt_tokens: length of the prompt, including bos.
      new_tokens: tokens to be generated.
      what: names the prompt in the error, such as "prompt 'mara-ellison' (prompts.jsonl:3)".

    Raises:
      DataError: they do not fit.
    """
    if prompt_tokens + new_tokens > cfg.max_seq_len:
        room = max(cfg.max_seq_len - new_tokens, 0)
        raise DataError(
            f"{what} has {prompt_tokens} tokens, and with {new_tokens} new ones it does not fit: the model's context "
            f"is {cfg.max_seq_len}: shorten it to {room} tokens or ask for fewer"
        )


def slots(positions: Int32[Array, "B S"], max_len: int) -> Int32[Array, "B S"]:
    """The slots of tokens at `positions`: the positions themselves, or `max_len` (out of range, so dropped) for padding."""
    return jnp.where((positions >= 0) & (positions < max_len), positions, max_len)
