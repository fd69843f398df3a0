"""The batch that the input pipeline hands to training."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Int32

from lacy_jax.objectives import QueryTargets, TokenLabels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A packed batch. B sequences of T positions; leaves are numpy on the host, jax.Array on devices.

    Attributes:
      tokens: input ids.
      targets: the id that follows tokens[b, t] in the same document (pad id if there is none).
      positions: position within the segment, from 0.
      segment_ids: 1, 2, ... for the documents in the row; 0 = padding.
      weights: True where the target is valid: not padding and, if confined, not across a document boundary.
        The method's m (arXiv:2602.12005 §4).
      labels: the dataset's labels of the TARGETS, [B, T] by name; 0 where `weights` is False.
      queries: the entries of each row, for a model with a query head; else None.
    """

    tokens: Int32[Array, "B T"]
    targets: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segment_ids: Int32[Array, "B T"]
    weights: Bool[Array, "B T"]
    labels: TokenLabels
    queries: QueryTargets | None = None
