"""The kind of fact that a token belongs to: the dataset says whether it is factual, and the labelling rules say which kind."""

from __future__ import annotations

import numpy as np

from lacy_jax.corpus import Document
from lacy_jax.dataset import Batch
from lacy_jax.labels import RuleLabeller
from lacy_jax.tokenizer import Tokenizer

KINDS = ("name", "number", "date", "title", "keyword", "unknown")
"""Kinds from the model-free rules (`labels.rules`). "keyword": occupations, fields of study and other words of the lists.
"unknown": factual only according to the dataset's labeller."""
NOT_FACTUAL = -1


def kinds_of(batch: Batch, tokenizer: Tokenizer, labeller: RuleLabeller) -> np.ndarray:
    """For each valid target of a host batch, in reading order, its index in `KINDS` or `NOT_FACTUAL`: int8 [n]."""
    targets, valid = np.asarray(batch.targets), np.asarray(batch.weights) > 0
    factual, segments = np.asarray(batch.labels["factual"]).astype(bool), np.asarray(batch.segment_ids)
    found = np.full(targets.shape, NOT_FACTUAL, np.int8)
    for row in range(len(targets)):
        for segment in np.unique(segments[row][valid[row]]):
            places = np.flatnonzero(valid[row] & (segments[row] == segment))
            kinds = _kinds(targets[row, places], tokenizer, labeller)
            found[row, places] = np.where(factual[row, places], kinds, NOT_FACTUAL)
    return found[valid]


def _kinds(ids: np.ndarray, tokenizer: Tokenizer, labeller: RuleLabeller) -> np.ndarray:
    pieces = [tokenizer.piece(int(token)).replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for token in ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    kinds = np.full(len(ids), KINDS.index("unknown"), np.int8)
    labels = labeller.label(Document("", "".join(pieces)))
    for (start, end), reason in zip(labels.factual, labels.reasons, strict=True):
        kind = KINDS.index(reason if reason in KINDS else "keyword")
        # Pieces with a character in [start, end).
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, end, "left")
        kinds[first : last + 1] = kind
    return kinds
