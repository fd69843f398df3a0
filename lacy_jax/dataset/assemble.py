"""From stretches of records to rows, and from rows to a Batch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.packing import RowPlan
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import RecordSource
from lacy_jax.errors import DataError


class Part(NamedTuple):
    """Tokens [start, stop) of a record that has been read."""

    record: Record
    start: int
    stop: int


Row = list[Part]
"""The parts of one row of a batch, left to right, up to seq_len + 1 tokens in total; [] is a row of padding."""


class PackedRows:
    """Rows of a dataset by index, as a random-access source for Grain.

    Args:
      skip_bad: leave corrupt records out and pad their rows; otherwise reading one raises DataError.

    Attributes:
      bad: documents left out so far.
    """

    def __init__(self, source: RecordSource, plan: RowPlan, rows: int, skip_bad: bool = False):
        self._source, self._plan, self._rows, self._skip_bad = source, plan, rows, skip_bad
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        row = []
        for stretch in self._plan.row(index):
            try:
                row.append(Part(self._source[stretch.document], stretch.start, stretch.stop))
            except DataError as error:
                if not self._skip_bad:
                    raise DataError(
                        f"{error}, or leave it out with config.input.on_bad_record = 'skip'"
                    ) from error
                if stretch.document not in self.bad:
                    self.bad.add(stretch.document)
                    print(f"warning: left out: {error}", file=sys.stderr, flush=True)
        return row


def stack_rows(
    rows: Sequence[Row], seq_len: int, pad_id: int, confine: bool, labels: Mapping[str, np.dtype]
) -> Batch:
    """Rows to a Batch of numpy arrays [len(rows), seq_len].

    All rows are stacked with one concatenation per field, because numpy's cost per call would outweigh the work.

    Args:
      confine: attention and targets stay inside a document; otherwise a row is one segment with running positions.
      labels: dtype of each label that goes into the batch; every record must have these labels.
    """
    parts = list(itertools.chain.from_iterable(rows))
    sizes = np.array([part.stop - part.start for part in parts], np.int64)
    parts_in_row = np.array([len(row) for row in rows])
    row_of_part = np.repeat(np.arange(len(rows)), parts_in_row)
    row_sizes = np.bincount(row_of_part, weights=sizes, minlength=len(rows)).astype(np.int64)
    columns = np.arange(seq_len + 1, dtype=np.int32)
    filled = columns < row_sizes[:, None]

    def spread(values: np.ndarray, fill: int = 0) -> np.ndarray:
        out: np.ndarray = np.full(filled.shape, fill, values.dtype)
        out[filled] = values
        return out

    def field(of: Callable[[Record], np.ndarray], dtype: np.dtype, fill: int = 0) -> np.ndarray:
        # The empty array sets the dtype even for a batch without tokens.
        slices = [of(part.record)[part.start : part.stop] for part in parts]
        return spread(np.concatenate([np.zeros(0, dtype), *slices], dtype=dtype), fill)

    if confine:
        first = np.cumsum(sizes) - sizes
        number = np.arange(len(parts)) - np.repeat(np.cumsum(parts_in_row) - parts_in_row, parts_in_row)
        segment = spread(np.repeat(number + 1, sizes).astype(np.int32))
        position = spread((np.arange(int(sizes.sum())) - np.repeat(first, sizes)).astype(np.int32))
    else:
        segment = filled.astype(np.int32)
        position = columns * segment
    tokens = field(lambda record: record.tokens, np.dtype(np.int32), pad_id)
    weights = filled[:, 1:] & (segment[:, 1:] == segment[:, :-1])

    def label(name: str) -> np.ndarray:
        values = field(lambda record: record.labels[name], labels[name])[:, 1:]
        return np.where(weights, values, labels[name].type(0))

    arrays: dict[str, Any] = {  # numpy arrays, although Batch declares jax.Array.
        "tokens": tokens[:, :-1],
        "targets": np.where(weights, tokens[:, 1:], np.int32(pad_id)),
        "positions": position[:, :-1],
        "segment_ids": segment[:, :-1],
        "weights": weights,
        "labels": {name: label(name) for name in labels},
    }
    return Batch(**arrays)
