"""Keys and values of past tokens, so that decoding computes each token once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models.config import ModelConfig
from lacy_jax.models.mask import MASKED, Mask

FIRST_BLOCK = 64
"""Slots of a cache's first block on a CPU; each further one makes them four times as many, as far as there are so many. More
blocks would read less, but ask more often which are needed, which slows a single text, and compile longer."""

Blocks = tuple[Float[Array, "B G _ K"], ...]
"""Keys or values of one layer: its slots in order, cut into blocks."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values by layer; slot s of a row holds the token at position s.

    Layers are separate arrays with slots next to the width, so that a step reads each layer without copying. Stacked
    layers with the heads innermost cost five times as much on a CPU (a slice and two transposes of the whole cache per
    step). On a CPU a layer's slots are cut into blocks, because most time goes into reading them: those that no row has
    reached yet are left out, without another program for each length.

    Attributes:
      k, v: L times blocks [B, G, m, K] in the compute dtype, of M slots together; B rows, G key/value heads, width K.
    """

    k: tuple[Blocks, ...]
    v: tuple[Blocks, ...]

    @property
    def max_len(self) -> int:
        """M, the number of tokens that a row can hold."""
        return sum(block.shape[2] for block in self.k[0])


def init_cache(cfg: ModelConfig, batch: int, max_len: int, cut: bool | None = None) -> Cache:
    """An empty cache for `batch` rows of at most `max_len` tokens.

    Args:
      cut: whether into several blocks; None = where this process computes on a CPU.

    Raises:
      ConfigError: `max_len` exceeds the model's context.
    """
    if not 1 <= max_len <= cfg.max_seq_len:
        raise ConfigError(
            f"a cache of {max_len} tokens: the model's context is {cfg.max_seq_len}; generate fewer tokens or "
            "train with a longer config.model.max_seq_len"
        )
    sizes = _block_sizes(max_len, cut)

    def empty() -> tuple[Blocks, ...]:
        return tuple(
            tuple(jnp.zeros((batch, cfg.n_kv_heads, size, cfg.head_dim), cfg.dtype) for size in sizes)
            for _ in range(cfg.n_layers)
        )

    return Cache(empty(), empty())


def _block_sizes(slots: int, cut: bool | None = None) -> list[int]:
    """64, 192, 768 ...: the same first blocks whatever the length, the last one shorter. One block on other devices than a
    CPU: to ask there which are needed costs more than to read them.
    """
    if not (jax.default_backend() == "cpu" if cut is None else cut):
        return [slots]
    sizes: list[int] = []
    while (left := slots - sum(sizes)) > 0:
        sizes.append(min(left, 3 * sum(sizes) or FIRST_BLOCK))
    return sizes


def grow(cache: Cache, max_len: int) -> Cache:
    """The cache with room for `max_len` tokens per row; its tokens keep their slots."""
    ends = np.cumsum(_block_sizes(max_len))[:-1]

    def longer(blocks: Blocks) -> Blocks:
        slots = jnp.concatenate(blocks, axis=2)
        slots = jnp.pad(slots, [(0, 0), (0, 0), (0, max_len - slots.shape[2]), (0, 0)])
        return tuple(jnp.split(slots, ends, axis=2))

    return Cache(*(tuple(longer(blocks) for blocks in layers) for layers in (cache.k, cache.v)))


def stored(blocks: Blocks, new: Float[Array, "B S G K"], columns: Int32[Array, "B S"]) -> Blocks:
    """The blocks with keys or values of S more tokens per row at the slots `columns`; those beyond the last are dropped."""
    rows, first, found = jnp.arange(new.shape[0])[:, None], 0, []
    for block in blocks:
        size = block.shape[2]
        place = jnp.where((columns >= first) & (columns < first + size), columns - first, size)
        found.append(block.at[rows, :, place].set(new.astype(block.dtype), mode="drop"))
        first += size
    return tuple(found)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reach:
    """What some queries see of a cache, by block.

    Attributes:
      masks: bool [B, 1, S, m], one for each block. needed: bool [], whether any query sees something of the block.
    """

    masks: tuple[Bool[Array, "B 1 S _"], ...]
    needed: tuple[Bool[Array, ""], ...]


def reach(cache: Cache, mask: Mask, real: Bool[Array, "B S"]) -> Reach:
    """What queries see under `mask`; those that are not `real` are padding, for which nothing is read."""
    ends = np.cumsum([block.shape[2] for block in cache.k[0]])[:-1]
    seen = mask.array(real.shape[1], cache.max_len) & real[:, None, :, None]
    masks = tuple(jnp.split(seen, ends, axis=3))
    return Reach(masks, tuple(jnp.any(part) for part in masks))


def cached_attention(
    q: Float[Array, "B S H K"], k: Blocks, v: Blocks, reach: Reach
) -> Float[Array, "B S H K"]:
    """Attention over one layer of the cache, under any mask; scores and softmax in float32.

    Block by block, with a running maximum and sum (arXiv:1805.02867). To leave out a block that a row does not see changes no
    bit of its result: all weights there are 0, and what was summed so far is multiplied by 1.

    Queries that share keys are made rows of one matrix for each (row, key head) first. Written as one contraction into
    [B, S, H, K], the second product takes XLA's CPU backend ten times as long for a chunk of 8 tokens.
    """
    batch, queries, heads, width = q.shape
    groups = k[0].shape[1]
    grouped = q.reshape(batch, queries, groups, -1, width).transpose(0, 2, 3, 1, 4)  # B G R S K
    flat = grouped.reshape(batch, groups, -1, width)
    top = jnp.full((*flat.shape[:3], 1), MASKED)
    state = top, jnp.zeros_like(top), jnp.zeros(flat.shape, jnp.float32)
    for keys, values, mask, needed in zip(k, v, reach.masks, reach.needed, strict=True):
        more = functools.partial(_with_block, flat, keys, values, mask)
        state = more(state) if len(k) == 1 else jax.lax.cond(needed, more, lambda state: state, state)
    _, total, mixed = state
    mixed = (mixed / jnp.where(total > 0, total, 1)).astype(v[0].dtype).reshape(grouped.shape)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width)


_State = tuple[Float[Array, "B G Q 1"], Float[Array, "B G Q 1"], Float[Array, "B G Q K"]]
"""Largest score so far, sum of the weights relative to it, and of the weighted values."""


def _with_block(
    flat: Float[Array, "B G Q K"],
    keys: Float[Array, "B G m K"],
    values: Float[Array, "B G m K"],
    mask: Bool[Array, "B 1 S m"],
    state: _State,
) -> _State:
    top, total, mixed = state
    scores = jnp.einsum("bgqk,bgmk->bgqm", flat, keys, preferred_element_type=jnp.float32)
    by_query = scores.reshape(*scores.shape[:2], -1, mask.shape[2], mask.shape[3])  # B G R S m
    by_query = jnp.where(mask[:, :, None], by_query * flat.shape[-1] ** -0.5, MASKED)
    scores = by_query.reshape(scores.shape)
    highest = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    weights, kept = jnp.exp(scores - highest), jnp.exp(top - highest)
    added = jnp.einsum(
        "bgqm,bgmk->bgqk", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return highest, total * kept + jnp.sum(weights, axis=-1, keepdims=True), mixed * kept + added


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


def packing(
    real: Bool[Array, "B S"], size: int | None
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """(packed, spread): [B, S, ...] -> the real tokens [1, `size`, ...], and back (padding becomes 0)."""
    if size is None:
        return lambda a: a, lambda a: a
    flat = real.ravel()
    place = jnp.flatnonzero(flat, size=size, fill_value=flat.size)
    index = jnp.where(flat, jnp.cumsum(flat) - 1, size)

    def packed(a: Array) -> Array:
        return a.reshape(flat.size, *a.shape[2:]).at[place].get(mode="fill", fill_value=0)[None]

    def spread(a: Array) -> Array:
        return a[0].at[index].get(mode="fill", fill_value=0).reshape(*real.shape, *a.shape[2:])

    return packed, spread
