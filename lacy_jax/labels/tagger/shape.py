"""Sizes of the tagger's network, and the form in which its weights travel."""

from __future__ import annotations

import dataclasses
from typing import Any

Weights = dict[str, Any]
"""`table` [sum(rows), W]; `embed`, each of `layers`: W [W * pieces, in], b, G and B (scale and shift after
normalisation); `out`: W [classes, W], b. All float32."""

FEATURES = ("NORM", "PREFIX", "SUFFIX", "SHAPE")
"""spaCy attributes of a word that are embedded, each in a hash table of its own."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes; the defaults are those of the shipped network."""

    classes: int
    rows: tuple[int, ...] = (8000, 1000, 3000, 1000)
    width: int = 64
    depth: int = 3
    pieces: int = 3
    embed_pieces: int = 3
