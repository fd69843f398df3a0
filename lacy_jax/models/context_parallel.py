"""Attention over rows that lie on several devices, a part of each row on each (context parallelism).

A query may see any earlier key of its row, so keys and values are gathered along the row; queries stay apart. Cut
straight, the last device would have nearly all the work: causal queries at the end see most. So each of S devices
takes two of the row's 2 S blocks of queries, one from either end, as in Llama 3 (arXiv:2407.21783 §3.3.2): block i and
block 2 S - 1 - i together see 2 S + 1 blocks of keys, whatever i. The blocks of queries travel there and the outputs
back; the batch itself stays in its order, so that masks, losses and data do not know of any of this.

What a device attends to depends on which it is, while shapes must be static: each place has a branch of its own, and
only that one runs. A ring, which would hold one device's keys at a time, saves memory that is small beside the
activations, and needs S - 1 exchanges in each layer where this needs one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lacy_jax.models.mask import Mask

Attend = Callable[[Array, Array, Array, Mask], Array]
"""`(q, k, v, mask) -> mixed values`: some queries of a row, and the keys up to the last of them."""


def gathered_attention(attend: Attend, axis: str, devices: int) -> Attend:
    """`attend` over whole rows, to be run on each device's part of them (`jax.shard_map`).

    Args:
      attend: attention of some queries to the keys they can reach.
      axis: mesh axis along which rows are cut. devices: its size, S.

    Returns:
      `(q [B, T/S, H, K], k, v [B, T/S, G, K], mask of T/S) -> [B, T/S, H, K]`; T/S must be even.
    """

    def local(q: Array, k: Array, v: Array, mask: Mask) -> Array:
        keys, values, mask = (lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v, mask))
        there = [_routes(devices, half) for half in (0, 1)]
        back = [[(to, start) for start, to in routes] for routes in there]
        first, second = (
            lax.ppermute(x, axis, to) for x, to in zip(jnp.split(q, 2, axis=1), there, strict=True)
        )
        mixed = _balanced(attend, axis, devices, first, second, keys, values, mask)
        return jnp.concatenate([lax.ppermute(x, axis, to) for x, to in zip(mixed, back, strict=True)], axis=1)

    return local


def _routes(devices: int, half: int) -> list[tuple[int, int]]:
    """(from, to) of the first (0) or second (1) block that each device holds: block b goes to b or to 2 S - 1 - b."""
    blocks = [2 * device + half for device in range(devices)]
    return [(device, min(block, 2 * devices - 1 - block)) for device, block in enumerate(blocks)]


def _branch(attend: Attend, devices: int, place: int) -> Callable[..., tuple[Array, Array]]:
    """What the device at `place` does with its blocks: of an even number in the row, and of an odd one."""
    even, odd = sorted((place, 2 * devices - 1 - place), key=lambda block: block % 2)

    def run(first: Array, second: Array, keys: Array, values: Array, mask: Mask) -> tuple[Array, Array]:
        size = first.shape[1]

        def one(q: Array, block: int) -> Array:
            part, reach = mask.part(block * size, (block + 1) * size)
            return attend(q, keys[:, reach], values[:, reach], part)

        return one(first, even), one(second, odd)

    return run


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _balanced(
    attend: Attend,
    axis: str,
    devices: int,
    first: Array,
    second: Array,
    keys: Array,
    values: Array,
    mask: Mask,
) -> tuple[Array, Array]:
    branches = [_branch(attend, devices, place) for place in range(devices)]
    return lax.switch(lax.axis_index(axis), branches, first, second, keys, values, mask)


def _forward(
    attend: Attend, axis: str, devices: int, *inputs: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    return _balanced(attend, axis, devices, *inputs), inputs


def _backward(
    attend: Attend, axis: str, devices: int, inputs: tuple[Any, ...], cotangents: tuple[Array, Array]
) -> tuple[Array | None, ...]:
    """By hand, for differentiating a switch would keep what every branch needs. Scores are computed again."""

    def gradient(place: int) -> Callable[..., tuple[Array, ...]]:
        def run(cotangents: tuple[Array, Array], mask: Mask, *given: Array) -> tuple[Array, ...]:
            branch = _branch(attend, devices, place)
            return jax.vjp(lambda *arrays: branch(*arrays, mask), *given)[1](cotangents)

        return run

    *given, mask = inputs
    branches = [gradient(place) for place in range(devices)]
    return (*lax.switch(lax.axis_index(axis), branches, cotangents, mask, *given), None)


_balanced.defvjp(_forward, _backward)
