"""The input pipeline: an endless or finite stream of batches with one integer as its state.

Global row r of a run depends only on the data, the seed and r. Batch b of the run is rows [bB, (b+1)B), and host p
of H takes the p-th of its H contiguous parts. So the order does not depend on hosts, threads or prefetch, and a run may
go on with another number of hosts or another batch size without repeating or skipping a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np

from lacy_jax import files
from lacy_jax.config import mixture_of
from lacy_jax.dataset.assemble import PackedRows, Row, stack_rows
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.host_cache import HostCache
from lacy_jax.dataset.online import OnlineLabels
from lacy_jax.dataset.packing import ORDER_VERSION, make_plan
from lacy_jax.dataset.query_links import ADVICE, QUERY_ENTRY, QueryLinks
from lacy_jax.dataset.source import RecordSource, open_split
from lacy_jax.errors import CheckpointError, ConfigError, DataError

_ENDLESS = sys.maxsize // 2**20  # Rows of an endless run; small enough for Grain's weight arithmetic.


_BUCKET_THREADS = 32
"""Least read threads for a bucket, where a record takes tens of milliseconds and no time of the processor."""


class InputPipeline(Iterator[Batch]):
    """Iterator of host-local batches; made by `make_input`.

    Attributes:
      sources: the datasets of the mixture.
      labels: name -> dtype of the labels that all sources have; these are in the batch.
      rows_per_epoch: rows of one pass over each dataset.
      steps: batches until the end; None if endless.
      batch_size: rows of the global batch.
      local_batch_size: rows of this host's part of it.
      links: the entries that a query head learns to ask for; None without such a head.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        weights: Sequence[float],
        config: ml_collections.ConfigDict,
        *,
        process_index: int,
        process_count: int,
        batch_size: int,
        epochs: int,
        drop_remainder: bool,
        links: QueryLinks | None = None,
    ):
        inp = config.input
        self.sources, self.links = tuple(sources), links
        shared = set.intersection(*(set(source.labels) for source in sources))
        self.labels = {name: np.result_type(*(s.labels[name] for s in sources)) for name in sorted(shared)}
        self.batch_size, self.local_batch_size = batch_size, batch_size // process_count
        self._seq_len, self._pad_id, self._confine = (
            inp.seq_len,
            sources[0].metadata.pad_id,
            inp.confine_to_document,
        )
        self._process_index, self._threads, self._prefetch = process_index, inp.threads, inp.prefetch
        if not all(files.is_local(source.path) for source in sources):
            self._threads = max(self._threads, _BUCKET_THREADS)
            self._prefetch = max(self._prefetch, self._threads)
        plans = [
            make_plan(s.lengths, inp.seq_len, inp.packing, inp.shuffle, config.seed + i)
            for i, s in enumerate(sources)
        ]
        self.rows_per_epoch = tuple(plan.rows_per_epoch for plan in plans)
        skip_bad = inp.on_bad_record == "skip"
        self._parts = [
            PackedRows(s, p, epochs * p.rows_per_epoch if epochs else _ENDLESS, skip_bad)
            for s, p in zip(sources, plans)
        ]
        maps = [grain.MapDataset.source(part) for part in self._parts]
        self._rows = maps[0] if len(maps) == 1 else grain.MapDataset.mix(maps, weights)
        self._total = len(self._rows)
        self._drop_remainder = drop_remainder
        self.steps = self._steps_from(0) if epochs else None
        if self.steps == 0:
            raise DataError(
                f"dataset {sources[0].path}, split {sources[0].split!r}: {self._total} rows of "
                f"{inp.seq_len} tokens do not fill one batch of {batch_size}; "
                "lower input.batch_size or input.seq_len, or add text"
            )
        self.fingerprint = _fingerprint(sources, weights, config)
        self._next_row = 0
        self._batches: Iterator[Batch] | None = None

    def __iter__(self) -> InputPipeline:
        return self

    def __next__(self) -> Batch:
        """The next batch of numpy arrays [local_batch_size, seq_len].

        Raises:
          StopIteration: `epochs` are used up. Rows that do not fill a batch are dropped (or padded, see
            `make_input`).
          DataError: a record is corrupt, and `input.on_bad_record` is "error".
        """
        if self._batches is None:
            self._batches = iter(self._start())
        batch = next(self._batches)
        self._next_row += self.batch_size
        return batch

    @property
    def bad_records(self) -> int:
        """Corrupt records left out so far, including those of prefetched rows."""
        return sum(len(part.bad) for part in self._parts)

    def get_state(self) -> dict[str, Any]:
        """State after the batches returned so far, regardless of prefetching; JSON-safe."""
        return {"next_row": self._next_row, "fingerprint": self.fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called, possibly with another batch size or number of hosts.

        Raises:
          CheckpointError: the state belongs to other data or another data order.
        """
        if not isinstance(state, dict) or set(state) != {"next_row", "fingerprint"}:
            raise CheckpointError(
                f"input state {state!r} is not one of this pipeline; start the run in a new workdir"
            )
        if state["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                "input state belongs to another data order (dataset, split, seed, input.seq_len, packing, "
                "shuffle or mixture changed); restore them or start the run in a new workdir"
            )
        self.close()
        self._next_row = int(state["next_row"])

    def close(self) -> None:
        """Stop the threads; the pipeline can be used again."""
        for source in self.sources:
            source.stop_copying()
        if self._batches is not None and hasattr(self._batches, "close"):
            self._batches.close()
        self._batches = None

    def _start(self) -> grain.IterDataset[Batch]:
        """The Grain pipeline from `_next_row` on."""
        for source in self.sources:
            source.start_copying()
        mine = _HostRows(self, self._steps_from(self._next_row) * self.local_batch_size)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(self._prefetch, 1))
        batches = grain.MapDataset.source(mine).batch(self.local_batch_size, batch_fn=self._stack)
        return batches.to_iter_dataset(options)

    def _steps_from(self, row: int) -> int:
        rows = max(self._total - row, 0)
        return rows // self.batch_size if self._drop_remainder else -(-rows // self.batch_size)

    def _stack(self, rows: Sequence[Row]) -> Batch:
        batch = stack_rows(rows, self._seq_len, self._pad_id, self._confine, self.labels)
        if self.links is None:
            return batch
        return dataclasses.replace(batch, queries=self.links.targets(np.asarray(batch.labels[QUERY_ENTRY])))

    def _global_row(self, index: int, first: int) -> Row:
        step, row = divmod(index, self.local_batch_size)
        r = first + step * self.batch_size + self._process_index * self.local_batch_size + row
        return self._rows[r] if r < self._total else []


class _HostRows:
    """This host's rows from `_next_row` on, in order."""

    def __init__(self, pipeline: InputPipeline, rows: int):
        self._pipeline, self._count, self._first = pipeline, rows, pipeline.get_state()["next_row"]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return self._pipeline._global_row(index, self._first)


def make_input(
    config: ml_collections.ConfigDict,
    *,
    split: str = "train",
    process_index: int = 0,
    process_count: int = 1,
    batch_size: int | None = None,
    epochs: int | None = None,
    tokenizer_hash: str | None = None,
    drop_remainder: bool = True,
) -> InputPipeline:
    """The input of a run, or of its validation.

    Args:
      config: `seed`, `input.*`, `dataset.path`, `labels.*` if `labels.online`, and `dataset.mixture` and
        `model.query_dim` for split "train" are read.
      split: "train" or "valid".
      process_index, process_count: the index of this host and the number of hosts.
      batch_size: GLOBAL batch; None = `config.input.batch_size`.
      epochs: passes over the data, 0 = endless; None = `config.input.epochs`. A mixture ends when its first
        dataset is used up.
      tokenizer_hash: hash of the run's tokenizer; data made with another one is refused.
      drop_remainder: at the end, drop rows that do not fill a batch; False pads the last batch with empty
        rows (weights False), so that validation sees every target.

    Raises:
      DataError: a dataset is missing, unfinished, damaged, empty, or made with another tokenizer.
      ConfigError: the batch size is not a multiple of the hosts, or the mixture is not ((path, weight), ...).
    """
    batch_size = config.input.batch_size if batch_size is None else batch_size
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"config.input.batch_size = {batch_size}: must be a multiple of the {process_count} processes"
        )
    mixture = (mixture_of(config) if split == "train" else ()) or ((config.dataset.path, 1.0),)
    cache = HostCache(config.dataset.cache, config.dataset.cache_gb)
    sources: list[RecordSource] = [open_split(path, split, cache) for path, _ in mixture]
    for source in sources:
        _check_tokenizer(source, tokenizer_hash or sources[0].metadata.tokenizer_hash)
    if config.labels.online:
        sources = [OnlineLabels(source, config) for source in sources]
    asks = split == "train" and config.model.query_dim > 0
    return InputPipeline(
        sources,
        [weight for _, weight in mixture],
        config,
        process_index=process_index,
        process_count=process_count,
        batch_size=batch_size,
        epochs=config.input.epochs if epochs is None else epochs,
        drop_remainder=drop_remainder,
        links=_links(sources, config.model.query_dim) if asks else None,
    )


def _links(sources: Sequence[RecordSource], dim: int) -> QueryLinks:
    """The linked entries, the same in all sources, for a query head of `dim` numbers."""
    field = f"config.model.query_dim = {dim}"
    links = [QueryLinks(source.path) for source in sources]
    for source, own in zip(sources, links, strict=True):
        if own.about.dim != dim:
            raise ConfigError(
                f"{field}: dataset {own.path} is linked to vectors of {own.about.dim} numbers (encoder {own.about.encoder})"
            )
        if QUERY_ENTRY not in source.labels:
            raise DataError(f"dataset {own.path}: has no extra {QUERY_ENTRY}; {ADVICE.format(path=own.path)}")
        if own.fingerprint != links[0].fingerprint:
            raise DataError(
                f"datasets {links[0].path} and {own.path} of the mixture are linked to different entries; link them together: "
                "`lacy index --index=FOLDER --link` with the same config.dataset.mixture"
            )
    return links[0]


def _check_tokenizer(source: RecordSource, wanted: str) -> None:
    have = source.metadata.tokenizer_hash
    if have != wanted:
        raise DataError(
            f"dataset {source.path} was made with tokenizer {have[:12]}, this run uses {wanted[:12]}: "
            "prepare the data with the run's tokenizer.model (config.tokenizer.path) or change dataset.path"
        )


def _fingerprint(
    sources: Sequence[RecordSource], weights: Sequence[float], config: ml_collections.ConfigDict
) -> str:
    inp = config.input
    data = [
        [source.metadata.fingerprint, source.split, float(weight)] for source, weight in zip(sources, weights)
    ]
    order = [ORDER_VERSION, config.seed, inp.seq_len, inp.packing, inp.shuffle, inp.confine_to_document]
    return hashlib.sha256(json.dumps([data, order]).encode()).hexdigest()[:16]
