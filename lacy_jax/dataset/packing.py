"""Which stretch of which document fills which row: a pure function of (lengths, seed, epoch, row).

Nothing is read here. A plan holds the token count of each document and a permutation for the current epoch
(16 bytes per document), and computes any row directly, in any order, on any host. So the state of the whole input
pipeline is one integer.

A row has up to `seq_len + 1` tokens: the first `seq_len` are inputs, the last `seq_len` are targets.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, UInt64

ORDER_VERSION = 1
"""Increase this when the order of rows changes for the same seed: older checkpoints then cannot resume exactly."""

_DOCUMENTS, _ROWS = 1, 2  # Names of streams of random keys.


class Stretch(NamedTuple):
    """Tokens [start, stop) of record `document`."""

    document: int
    start: int
    stop: int


class RowPlan(Protocol):
    """Rows of one dataset."""

    rows_per_epoch: int

    def row(self, index: int) -> list[Stretch]:
        """Stretches of row `index` >= 0 of the run, left to right; the epochs follow each other."""


def make_plan(lengths: np.ndarray, seq_len: int, packing: str, shuffle: bool, seed: int) -> RowPlan:
    """Plan over records of `lengths` tokens; packing is "split" or "whole".

    With both, every target that continues a document occurs exactly once per epoch.
    """
    if packing == "whole":
        return WholePlan(lengths, seq_len, shuffle, seed)
    return SplitPlan(lengths, seq_len, shuffle, seed)


class SplitPlan:
    """Documents end to end in the epoch's order, cut into windows of seq_len + 1 tokens with stride seq_len.

    Neighbouring windows share one token: the last target of a row is the first input of the next. With shuffling, the
    order of documents AND the order of windows change each epoch, so that the stretches of a long document are spread
    over batches.
    """

    def __init__(self, lengths: np.ndarray, seq_len: int, shuffle: bool, seed: int):
        self._lengths = np.asarray(lengths, np.int64)
        self._seq_len, self._shuffle, self._seed = seq_len, shuffle, seed
        self._total = int(self._lengths.sum())
        self.rows_per_epoch = max(1, -(-(self._total - 1) // seq_len))
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def row(self, index: int) -> list[Stretch]:
        """Stretches of row `index`; see `RowPlan`."""
        epoch, row = divmod(index, self.rows_per_epoch)
        order, ends, rows = self._epoch(epoch)
        begin = int(rows[row]) * self._seq_len
        end = min(begin + self._seq_len + 1, self._total)
        stretches = []
        k = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            document, document_end = int(order[k]), int(ends[k])
            first = document_end - int(self._lengths[document])
            stop = min(document_end, end)
            if stop > begin:
                stretches.append(Stretch(document, begin - first, stop - first))
            begin, k = stop, k + 1
        return stretches

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with self._lock:
            if epoch not in self._epochs:
                documents = len(self._lengths)
                order = (
                    permutation(documents, self._seed, epoch, _DOCUMENTS)
                    if self._shuffle
                    else np.arange(documents)
                )
                rows = _row_order(self.rows_per_epoch, self._shuffle, self._seed, epoch)
                # Two epochs are needed while prefetching threads work on both sides of the boundary.
                self._epochs = {e: plan for e, plan in self._epochs.items() if e == epoch - 1}
                self._epochs[epoch] = (order, np.cumsum(self._lengths[order]), rows)
            return self._epochs[epoch]


class WholePlan:
    """Documents stay whole, except that one longer than seq_len + 1 tokens is cut with stride seq_len.

    Each full cut takes a row of its own. The remaining stretches share rows, filled next-fit in the seed's order of
    documents. The content of the rows is the same in each epoch; their order changes.
    """

    def __init__(self, lengths: np.ndarray, seq_len: int, shuffle: bool, seed: int):
        lengths = np.asarray(lengths, np.int64)
        self._seq_len, self._shuffle, self._seed = seq_len, shuffle, seed
        order = permutation(len(lengths), seed, 0, _DOCUMENTS) if shuffle else np.arange(len(lengths))
        targets = np.maximum(lengths[order] - 1, 0)
        cuts = targets // seq_len
        # Full cuts: document i has cuts[i] of them, numbered from 0.
        self._full_documents = np.repeat(order, cuts)
        self._full_starts = (np.arange(int(cuts.sum())) - np.repeat(np.cumsum(cuts) - cuts, cuts)) * seq_len
        rest = targets % seq_len > 0
        self._documents, self._starts = order[rest], (cuts * seq_len)[rest]
        self._stops = lengths[self._documents]
        self._first = _next_fit(self._stops - self._starts, seq_len + 1)
        self.rows_per_epoch = max(1, len(self._full_documents) + len(self._first) - 1)
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def row(self, index: int) -> list[Stretch]:
        """Stretches of row `index`; see `RowPlan`."""
        epoch, position = divmod(index, self.rows_per_epoch)
        row = int(self._epoch(epoch)[position])
        full = len(self._full_documents)
        if row < full:
            start = int(self._full_starts[row])
            return [Stretch(int(self._full_documents[row]), start, start + self._seq_len + 1)]
        if row - full + 1 >= len(self._first):
            return []  # No document has two tokens: the only row is empty.
        a, b = self._first[row - full], self._first[row - full + 1]
        return [
            Stretch(int(self._documents[i]), int(self._starts[i]), int(self._stops[i])) for i in range(a, b)
        ]

    def _epoch(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs = {e: rows for e, rows in self._epochs.items() if e == epoch - 1}
                self._epochs[epoch] = _row_order(self.rows_per_epoch, self._shuffle, self._seed, epoch)
            return self._epochs[epoch]


def _next_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Index of the first item of each bin when items go, in order, into bins of `capacity`; [bins + 1]."""
    ends = np.cumsum(sizes)
    first, filled = [0], 0
    while first[-1] < len(sizes):
        nxt = int(np.searchsorted(ends, filled + capacity, side="right"))
        filled = int(ends[nxt - 1])
        first.append(nxt)
    return np.asarray(first)


def _row_order(rows: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    return permutation(rows, seed, epoch, _ROWS) if shuffle else np.arange(rows)


def permutation(n: int, seed: int, epoch: int, stream: int) -> Int64[np.ndarray, n]:
    """A permutation of range(n), drawn from (seed, epoch, stream).

    It sorts by hashed keys instead of using numpy's generators, because their shuffles may change between versions and
    the data order must survive an upgrade.
    """
    key = _mix(_mix(_mix(np.uint64(seed % 2**64)) ^ np.uint64(epoch)) ^ np.uint64(stream))
    return np.argsort(_mix(np.arange(n, dtype=np.uint64) ^ key), kind="stable")


def _mix(x: Any) -> UInt64[np.ndarray, ...]:
    """The finaliser of splitmix64: a bijection of uint64 in which every output bit depends on every input bit."""
    with np.errstate(over="ignore"):  # The multiplication is meant to wrap.
        x = np.asarray(x + np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))
