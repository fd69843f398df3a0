"""Attention over rows that are split over several devices (context parallelism).

A query may see any earlier key of its row, so keys and values are gathered along the row, while queries stay split. With
contiguous parts the last device would do nearly all the work, because the last causal queries see the most keys. So each
of S devices takes two of the row's 2 S blocks of queries, one from either end, as in Llama 3 (arXiv:2407.21783 §3.3.2):
blocks i and 2 S - 1 - i together see 2 S + 1 blocks of keys, for every i. The blocks of queries are sent there and the
outputs sent back; the batch itself keeps its order, so masks, losses and data are not affected.

What a device attends to depends on its index, but shapes must be static: each index has its own branch, and only that
branch runs. A ring would hold the keys of only one device at a time, but the memory it saves is small beside the
activations, and it needs S - 1 exchanges per layer instead of one.
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
"""`(q, k, v, mask) -> mixed values`, for some queries of a row and the keys up to the last of them."""


def gathered_attention(attend: Attend, axis: str, devices: int) -> Attend:
    """`attend` over whole rows, as a function of each device's part of them (for `jax.shard_map`).

    Args:
      attend: attention of some queries to the keys that they can reach.
      axis: the mesh axis that splits rows.
      devices: its size, S.

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
    """(from, to) for the first (0) or second (1) block of each device: block b goes to device min(b, 2 S - 1 - b)."""
    blocks = [2 * device + half for device in range(devices)]
    return [(device, min(block, 2 * devices - 1 - block)) for device, block in enumerate(blocks)]


def _branch(attend: Attend, devices: int, place: int) -> Callable[..., tuple[Array, Array]]:
    """What the device at `place` does with its two blocks, the even-numbered and the odd-numbered one."""
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
    """Written by hand, because differentiating a switch would keep the residuals of every branch. Recomputes scores."""

    def gradient(place: int) -> Callable[..., tuple[Array, ...]]:
        def run(cotangents: tuple[Array, Array], mask: Mask, *given: Array) -> tuple[Array, ...]:
            branch = _branch(attend, devices, place)
            return jax.vjp(lambda *arrays: branch(*arrays, mask), *given)[1](cotangents)

        return run

    *given, mask = inputs
    branches = [gradient(place) for place in range(devices)]
    return (*lax.switch(lax.axis_index(axis), branches, cotangents, mask, *given), None)


_balanced.defvjp(_forward, _backward)
