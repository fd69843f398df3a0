"""Which keys a query may see: the one rule that every attention and the KV cache use.

A query sees the keys at or before its own place in the row, within its segment and its sliding window. To add another
kind of mask, add a field to `Mask`, its rule to `sees`, the keys it can reach to `part`, and the kernel's form of it to
`splash`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

MASKED = jnp.finfo(jnp.float32).min
"""Score of a key that a query does not see."""
KEY_BLOCK = 128
"""Keys are cut off in whole blocks of this size, which is what a TPU kernel works on at once."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["segments", "places"], meta_fields=["window", "start"]
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """The mask of some queries of a row against the keys up to the last of them.

    Attributes:
      segments: int32 [B, S], the keys' segments; 0 = padding, which sees only padding; None = all keys in one segment.
      window: the most keys that a query sees, including its own; 0 = all.
      start: place of the first query among the keys; the other queries follow it.
      places: int32 [B, Q], places of the queries if they differ between rows (decoding); None = from `start` on.
    """

    segments: Int32[Array, "B S"] | None = None
    window: int = 0
    start: int = 0
    places: Int32[Array, "B Q"] | None = None

    def array(self, queries: int, keys: int) -> Bool[Array, "#B 1 Q S"]:
        """[b, 0, i, j] is True where query i may see key j."""
        places = self.start + jnp.arange(queries)[None] if self.places is None else self.places
        seen = self.sees(places[:, :, None], jnp.arange(keys))
        if self.segments is not None:
            own = self.segments[:, self.start : self.start + queries]
            seen &= own[:, :, None] == self.segments[:, None, :]
        return seen[:, None]

    def sees(self, query: Any, key: Any) -> Any:
        """The rule by place alone, for numbers or broadcastable arrays."""
        return (key <= query) & (key > query - self.window) if self.window else key <= query

    def part(self, first: int, last: int) -> tuple[Mask, slice]:
        """The mask of queries first .. last - 1 (counted from this mask's first query), and the keys they can reach."""
        start, end = self.start + first, self.start + last
        reach = max(start - self.window + 1, 0) // KEY_BLOCK * KEY_BLOCK if self.window else 0
        segments = None if self.segments is None else self.segments[:, reach:end]
        return Mask(segments, self.window, start - reach), slice(reach, end)

    def splash(self, queries: int, keys: int) -> Any:
        """The rule by place as a mask of splash attention, which takes segments separately."""
        # Pallas is slow to import and used on TPUs only.
        from jax.experimental.pallas.ops.tpu import splash_attention

        if self.window:
            return splash_attention.LocalMask((queries, keys), (self.window - 1, 0), self.start)
        return splash_attention.CausalMask((queries, keys), self.start)
