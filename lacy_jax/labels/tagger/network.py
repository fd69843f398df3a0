"""The forward pass of the tagger's network in numpy, several times faster than spaCy's own.

On disk it is a plain spaCy pipeline (`spacy.load` reads it, any spaCy tool can use it): the English tokenizer and one
`tagger` of hash embeddings and a window encoder. `Network` takes its weights and computes the same scores, but embeds
every distinct word once per process instead of once per occurrence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int32, UInt64

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

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
    width: int = 96
    depth: int = 4
    pieces: int = 3
    embed_pieces: int = 3


_BLOCK = 512
"""Words convolved at once: as many as fit into a core's cache."""
_EMBED = 64
"""Words embedded at once. Blocks are always of this size, so that rounding, and with it a label, does not depend on
which other words are new."""
_CACHE = 1 << 17
"""Distinct words remembered; when there are more, all are forgotten, so that memory stays bounded."""
_MIX = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD],
    np.uint64,
)


def hash_rows(attributes: UInt64[np.ndarray, "n features"], shape: Shape) -> Int32[np.ndarray, "n rows"]:
    """The table rows that make up each word's embedding: four per feature, as thinc hashes them."""
    from thinc.api import NumpyOps

    ops, offset, found = NumpyOps(), 0, []
    for column, rows in enumerate(shape.rows):
        # spaCy seeds the tables of MultiHashEmbed with 8, 9, ...
        found.append(ops.hash(np.ascontiguousarray(attributes[:, column]), 8 + column) % rows + offset)
        offset += rows
    return np.concatenate(found, 1).astype(np.int32)


class Network:
    """Scores of words in numpy."""

    def __init__(self, weights: Weights, shape: Shape):
        self._weights = weights
        self._shape = shape
        self._known: dict[int, int] = {}
        self._embedded = np.zeros((0, shape.width), np.float32)

    def scores(
        self, attributes: UInt64[np.ndarray, "n features"]
    ) -> Iterator[Float[np.ndarray, "block classes"]]:
        """The scores of the classes of one document's words, block by block, from their `FEATURES` as spaCy hashes them
        (and others, for which the shape has tables)."""
        halo = self._shape.depth
        words = self._embed(attributes)
        x = np.zeros((len(words) + 2 * halo, self._shape.width), np.float32)
        x[halo : len(x) - halo] = words
        out = self._weights["out"]
        for start in range(0, len(words), _BLOCK):
            y = x[start : start + _BLOCK + 2 * halo]
            with _one_thread():
                for layer in self._weights["layers"]:
                    y = y + _maxout(layer, _windows(y), self._shape.pieces)
                found = y[halo : len(y) - halo] @ out["W"].T + out["b"]
            yield found

    def _embed(self, attributes: UInt64[np.ndarray, "n features"]) -> Float[np.ndarray, "n W"]:
        keys = (attributes * _MIX[: attributes.shape[1]]).sum(1, dtype=np.uint64).tolist()
        if len(self._known) + len(keys) > _CACHE:
            self._known.clear()
        rows = [self._known.get(key, -1) for key in keys]
        if -1 in rows:
            new = {key: i for i, key in enumerate(keys) if key not in self._known}
            self._learn(list(new), attributes[list(new.values())])
            rows = [self._known[key] for key in keys]
        return self._embedded[rows]

    def _learn(self, keys: Sequence[int], attributes: UInt64[np.ndarray, "n features"]) -> None:
        """Embed words and remember them."""
        first = len(self._known)
        need = first + len(keys)
        if need > len(self._embedded):
            grown = np.zeros((max(need, 2 * len(self._embedded)), self._shape.width), np.float32)
            grown[:first] = self._embedded[:first]
            self._embedded = grown
        rows = hash_rows(attributes, self._shape).reshape(len(keys), len(self._shape.rows), 4)
        for start in range(0, len(keys), _EMBED):
            part = rows[start : start + _EMBED]
            block = np.zeros((_EMBED, len(self._shape.rows) * self._shape.width), np.float32)
            block[: len(part)] = self._weights["table"][part].sum(2).reshape(len(part), -1)
            with _one_thread():
                learnt = _maxout(self._weights["embed"], block, self._shape.embed_pieces)
            self._embedded[first + start : first + start + len(part)] = learnt[: len(part)]
        self._known.update(zip(keys, range(first, need)))


@functools.cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> contextlib.AbstractContextManager[Any]:
    """numpy's products start no threads: labelling runs one process per core."""
    return _libraries().limit(limits=1, user_api="blas")


def _windows(x: Float[np.ndarray, "n W"]) -> Float[np.ndarray, "n 3W"]:
    n, width = x.shape
    out = np.zeros((n, 3 * width), np.float32)
    out[1:, :width] = x[:-1]
    out[:, width : 2 * width] = x
    out[:-1, 2 * width :] = x[1:]
    return out


def _maxout(
    layer: dict[str, np.ndarray], x: Float[np.ndarray, "n I"], pieces: int
) -> Float[np.ndarray, "n W"]:
    z = (x @ layer["W"].T + layer["b"]).reshape(len(x), -1, pieces)
    y = z[:, :, 0]
    for piece in range(1, pieces):
        y = np.maximum(y, z[:, :, piece])
    y = y - y.mean(1, keepdims=True)
    y /= np.sqrt(np.einsum("ij,ij->i", y, y)[:, None] / y.shape[1] + 1e-8)
    y *= layer["G"]
    y += layer["B"]
    return y
