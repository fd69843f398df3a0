"""Exact selection of the k highest-ranked positions of a global batch, independent of its layout.

Sorting a sharded batch would gather it on every device. A radix search needs only counts: four bits at a time, it counts
the candidates in each of sixteen buckets. That is an integer sum, which does not depend on the order of addition and
costs an all-reduce of 64 bytes. Eight such rounds find the k-th largest 32-bit key exactly; a second search over the
row-major index then decides among equal keys, so that exactly k positions are chosen.
"""

from __future__ import annotations

from decimal import Decimal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

_DIGIT_BITS = 4
_BUCKETS = 1 << _DIGIT_BITS


def fraction_of(rate: float, total: Int32[Array, ""]) -> Int32[Array, ""]:
    """floor(rate * total), exactly: 0.29 of 100 is 29, although the float product is below 29.

    Args:
      rate: a Python number in [0, 1], taken as the decimal number it is written as.
      total: count, at least 0.
    """
    whole, _, decimals = format(Decimal(str(rate)), "f").partition(".")
    total = total.astype(jnp.uint32)
    tens, ones = total // 10, total % 10
    count = jnp.uint32(0)
    # Horner's rule from the last digit d: (total * d + count) // 10, arranged so that nothing exceeds 32 bits. Rounding
    # down at each step loses nothing: floor((integer + x) / 10) = floor((integer + floor(x)) / 10).
    for digit in map(int, reversed(decimals)):
        count = tens * digit + (ones * digit + count) // 10
    return (int(whole) * total + count).astype(jnp.int32)


def sortable_bits(values: Float[Array, "*S"]) -> UInt32[Array, "*S"]:
    """uint32 keys in the order of float32 `values`: key(a) < key(b) if and only if a < b; -0.0 equals 0.0.

    NaN with a positive sign ranks above infinity.
    """
    values = jnp.where(values == 0, 0.0, values.astype(jnp.float32))
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def from_sortable_bits(keys: UInt32[Array, "*S"]) -> Float[Array, "*S"]:
    """Inverse of `sortable_bits`."""
    sign = jnp.uint32(1 << 31)
    return lax.bitcast_convert_type(jnp.where(keys & sign != 0, keys ^ sign, ~keys), jnp.float32)


def select_largest(
    keys: UInt32[Array, "B T"], eligible: Bool[Array, "B T"], count: Int32[Array, ""]
) -> tuple[Bool[Array, "B T"], UInt32[Array, ""]]:
    """The `count` eligible positions with the largest keys; among equal keys the earliest in row-major order.

    Under `jit` with B sharded, only [16] integer counts are exchanged between devices. If fewer than `count` positions
    are eligible, all of them are selected.

    Returns:
      The selection, with exactly min(count, number eligible) True; and the smallest selected key (meaningless if
      nothing is selected).
    """
    keys, eligible = lax.stop_gradient(keys), eligible.astype(bool)
    count = jnp.minimum(count, jnp.sum(eligible, dtype=jnp.int32))
    threshold, quota = _kth_largest(keys, eligible, count, bits=32)
    tied = eligible & (keys == threshold)
    # Positions are counted from the end, so that the earliest of the tied ones has the largest key.
    size = keys.size
    from_end = jnp.uint32(size - 1) - lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
    stride = 1
    for axis in range(keys.ndim - 2, -1, -1):
        stride *= keys.shape[axis + 1]
        from_end = from_end - jnp.uint32(stride) * lax.broadcasted_iota(jnp.uint32, keys.shape, axis)
    last, _ = _kth_largest(from_end, tied, quota, bits=max(1, (size - 1).bit_length()))
    chosen = (eligible & (keys > threshold)) | (tied & (from_end >= last))
    return chosen & (count > 0), threshold


def _kth_largest(
    keys: UInt32[Array, "B T"], eligible: Bool[Array, "B T"], count: Int32[Array, ""], *, bits: int
) -> tuple[UInt32[Array, ""], Int32[Array, ""]]:
    """The `count`-th largest eligible key, and how many of the keys equal to it belong to the `count` largest."""
    rounds = -(-bits // _DIGIT_BITS)
    buckets = lax.broadcasted_iota(jnp.uint32, (_BUCKETS, *(1,) * keys.ndim), 0)

    def descend(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        prefix, remaining = state
        shift = ((rounds - 1 - step) * _DIGIT_BITS).astype(jnp.uint32)
        # The bits above this digit. In the first of eight rounds the constant is shifted out, so there are none.
        above = ~((jnp.uint32(_BUCKETS) << shift) - jnp.uint32(1))
        candidate = eligible & (((keys ^ prefix) & above) == 0)
        digit = (keys >> shift) & jnp.uint32(_BUCKETS - 1)
        hits = candidate[None] & (digit[None] == buckets)
        counts = jnp.sum(hits, axis=tuple(range(1, hits.ndim)), dtype=jnp.int32)
        at_least = jnp.cumsum(counts[::-1])[::-1]
        # The highest digit that still leaves `remaining` candidates at or above it.
        chosen = jnp.maximum(jnp.sum(at_least >= remaining, dtype=jnp.int32) - 1, 0)
        remaining = remaining - (at_least[chosen] - counts[chosen])
        return prefix | (chosen.astype(jnp.uint32) << shift), remaining

    start = (jnp.uint32(0), jnp.maximum(count, 1).astype(jnp.int32))
    return lax.fori_loop(0, rounds, descend, start)


def random_keys(rng: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "*S"]:
    """Uniform keys, a pure function of (rng, position), so they are the same for every device layout."""
    with jax.threefry_partitionable(True):
        return jax.random.bits(rng, shape, jnp.uint32)
