"""Sums over the bits of a state, by which damage to a checkpoint is noticed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def lies_here(x: jax.Array) -> bool:
    """Whether numpy does the work: programs for all shapes would take seconds to compile, in each process that reads a
    checkpoint.
    """
    return jax.default_backend() == "cpu" and x.is_fully_addressable


def _bit_sum(x: jax.Array) -> jax.Array:
    """uint32 []: sum of the words of `x`, each times an odd number of its position, modulo 2**32.

    Any change of one word changes the sum, and integer sums do not depend on the order, so not on sharding either.
    """
    words = jax.lax.bitcast_convert_type(x, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[x.dtype.itemsize])
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(words.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_bit_sum(leaf) for leaf in leaves])


def _bit_sum_here(x: np.ndarray) -> int:
    """`_bit_sum` by numpy."""
    words = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").ravel()
    return int(np.sum(words * (2 * np.arange(words.size, dtype=np.uint32) + 1), dtype=np.uint32))


def checksums(tree: Any) -> dict[str, int]:
    """A sum of the bits of each array of a tree, by the array's path; it depends neither on sharding nor on order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    arrays = [leaf for _, leaf in leaves]
    if all(map(lies_here, arrays)):
        return dict(zip(names, (_bit_sum_here(np.asarray(leaf)) for leaf in arrays), strict=True))
    return dict(zip(names, np.asarray(_bit_sums(arrays)).tolist(), strict=True))
