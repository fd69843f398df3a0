"""From character spans to pieces (arXiv:2602.12005 leaves it open; method.md: by character offsets)."""

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
    """Which pieces state what the spans mark: those whose non-space characters overlap a span.

    Exact for every tokenizer that gives character offsets: a piece that begins with the space before a value is
    marked, the space alone is not, and each byte piece of a marked character is marked.

    Args:
      spans: half-open character ranges of `text`.
      starts, ends: characters text[starts[i]:ends[i]] of piece i, from `Tokenizer.encode_with_offsets`.
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
    # before[i] = marked characters in text[:i], so a difference counts those of a piece.
    before = np.concatenate([[0], np.cumsum(marked)])
    return before[ends] > before[starts]
