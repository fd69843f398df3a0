"""The unit that crosses from the input pipeline to training."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A packed batch. B sequences of T positions; leaves are numpy on the host, jax.Array on devices.

    Attributes:
      tokens: input ids.
      targets: the id that follows tokens[b, t] in the same document (pad id where there is none).
      positions: position within the segment, from 0.
      segment_ids: 1, 2, ... per document piece within the row; 0 = padding.
      weights: True where the target is valid: not padding and, if confined, not across a document boundary.
        The method's m (arXiv:2602.12005 §4).
      factual: the TARGET is a factual token.
      nongrammatical: the TARGET is neither factual nor grammatical.
      judge: the TARGET was flagged by an LLM judge; None if the dataset has no such labels.
      reference_nll: nll of the TARGET under a reference model, nats; None if not stored.
    """

    tokens: Int32[Array, "B T"]
    targets: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segment_ids: Int32[Array, "B T"]
    weights: Bool[Array, "B T"]
    factual: Bool[Array, "B T"]
    nongrammatical: Bool[Array, "B T"]
    judge: Bool[Array, "B T"] | None = None
    reference_nll: Float[Array, "B T"] | None = None
