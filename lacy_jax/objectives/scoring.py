"""Scoring of text: a model's statistics for existing tokens. Validation, gates and suites all use this module.

`score_tokens` is the one path from a batch to `TokenStatistics`; `scorer` compiles it, and `score_documents` cuts whole
documents into windows that fit the model's context.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from lacy_jax.models import Transformer
from lacy_jax.objectives.statistics import TokenStatistics, token_statistics
from lacy_jax.progress import Progress, Silent

_WIDTH = 32
"""Row widths are a multiple of this many tokens, so that few shapes are compiled."""


def score_tokens(
    model: Transformer,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    *,
    partition: Any = None,
    chunk: int = 0,
) -> TokenStatistics:
    """`token_statistics` of a teacher-forced batch; call it from a jitted function.

    Args:
      tokens, positions, segment_ids, partition: see `Transformer.__call__`.
      targets, chunk: see `token_statistics`.
    """
    hidden = model(tokens, positions, segment_ids, partition=partition)
    return token_statistics(hidden, model.head_kernel(), model.call_vector(), targets, chunk=chunk)


Scorer = Callable[..., TokenStatistics]
"""(tokens, targets, positions, segment_ids), each int32 [B, T] -> statistics [B, T]; numpy arrays in and out."""


def scorer(model: Transformer, chunk: int = 0) -> Scorer:
    """`score_tokens` of one model, compiled, on this process's devices."""
    return lambda *arrays: jax.device_get(_compiled(model, chunk, *arrays))


@functools.partial(jax.jit, static_argnums=1)
def _compiled(model: Transformer, chunk: int, *arrays: Array) -> TokenStatistics:
    return score_tokens(model, *arrays, chunk=chunk)


def windows(length: int, context: int) -> list[tuple[int, int]]:
    """How a document of `length` tokens is cut for a model with a context of `context`: [start, stop) of up to context + 1.

    Neighbouring windows share one token, the last target of the first and the first input of the second, so that every
    token except the document's first is a target exactly once.
    """
    return [(start, min(start + context + 1, length)) for start in range(0, length - 1, context)]


def score_documents(
    score: Scorer,
    documents: Sequence[Int[np.ndarray, " n"]],
    context: int,
    *,
    rows: int = 16,
    title: str = "",
) -> list[TokenStatistics]:
    """Statistics of documents of any length. Their windows share rows, as in training, but do not see each other.

    Args:
      score: `scorer` of a model, or a function with the same interface.
      documents: token ids [n] of each document, n at least 1.
      context: tokens read at once; longer documents are cut by `windows`.
      rows: the most rows scored at once.
      title: title of the progress bar; "" shows none.

    Returns:
      Statistics of each document as numpy arrays [n - 1]; entry i is that of token i + 1.
    """
    sizes = np.array([len(ids) - 1 for ids in documents], np.int64)
    ends, total = np.cumsum(sizes), int(sizes.sum())
    arrays: dict[str, Any] = {
        f.name: np.zeros(total, np.int32 if f.name == "top1" else np.float32) for f in _FIELDS
    }
    width = min(-(-int(sizes.max(initial=0)) // _WIDTH) * _WIDTH, context)
    packed = list(_pack([len(ids) for ids in documents], width, context))
    with Progress(title, total=len(packed), unit="rows") if title else Silent() as progress:
        for first in range(0, len(packed), rows):
            part = packed[first : first + rows]
            tokens, targets, positions, segments = np.zeros((4, min(rows, len(packed)), width), np.int32)
            place = np.full(tokens.shape, -1, np.int64)  # Index of each target among all targets.
            for row, some in enumerate(part):
                column = 0
                for number, (index, start, stop) in enumerate(some, 1):
                    own, ids = np.s_[row, column : column + stop - start - 1], documents[index][start:stop]
                    tokens[own], targets[own], segments[own] = ids[:-1], ids[1:], number
                    positions[own] = np.arange(len(ids) - 1)
                    place[own] = ends[index] - sizes[index] + start + positions[own]
                    column += len(ids) - 1
            scored = score(tokens, targets, positions, segments)
            for field in _FIELDS:
                arrays[field.name][place[place >= 0]] = getattr(scored, field.name)[place >= 0]
            progress.update(len(part))
    found = TokenStatistics(**arrays)
    return [
        jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], found)
        for start, stop in zip((ends - sizes).tolist(), ends.tolist(), strict=True)
    ]


_FIELDS = dataclasses.fields(TokenStatistics)


def _pack(lengths: Sequence[int], width: int, context: int) -> Iterator[list[tuple[int, int, int]]]:
    """Rows of (document, start, stop): all windows in order, as many per row as fit."""
    row: list[tuple[int, int, int]] = []
    room = width
    for index, length in enumerate(lengths):
        for start, stop in windows(length, context):
            if stop - start - 1 > room:
                yield row
                row, room = [], width
            row.append((index, start, stop))
            room -= stop - start - 1
    if row:
        yield row
