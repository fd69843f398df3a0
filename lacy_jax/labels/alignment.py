"""From character spans to pieces, by character offsets (arXiv:2602.12005 leaves this open)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from lacy_jax.labels.spans import Span

_SPACES = re.compile(r"\s+")


def align(
    spans: Sequence[Span],
    starts: Int32[np.ndarray, " n"],
    ends: Int32[np.ndarray, " n"],
    text: str,
) -> Bool[np.ndarray, " n"]:
    """The pieces whose non-space characters overlap a span.

    This is exact for every tokenizer that gives character offsets: a piece that begins with the space before a value
    is marked, the space alone is not, and each byte piece of a marked character is marked.

    Args:
      spans: half-open character ranges of `text`.
      starts, ends: piece i is text[starts[i]:ends[i]], as `Tokenizer.encode_with_offsets` gives them.
      text: the labelled text.

    Raises:
      ValueError: a span lies outside the text.
    """
    marked = np.zeros(len(text) + 1, np.int32)
    for start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"span ({start}, {end}) lies outside a text of {len(text)} characters")
        marked[start:end] = 1
    if not spans:
        return np.zeros(len(starts), bool)
    for space in _SPACES.finditer(text):
        marked[space.start() : space.end()] = 0
    # before[i] = number of marked characters in text[:i], so a difference counts the marked ones in a piece.
    before = np.concatenate([[0], np.cumsum(marked)])
    return before[ends] > before[starts]
