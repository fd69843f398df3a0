"""Random access to the records of one split."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt32

from lacy_jax import files
from lacy_jax.dataset.bucket import BucketFile, BucketShards, list_bucket
from lacy_jax.dataset.extras import open_extras
from lacy_jax.dataset.host_cache import HostCache
from lacy_jax.dataset.metadata import Metadata, read_metadata
from lacy_jax.dataset.records import STORED_LABELS, Record, decode_record
from lacy_jax.errors import DataError, one_line

DATASET_NAME = "lacy"
FILE_TYPE = "array_record"


def shard_name(split: str, shard: int, shards: int) -> str:
    """The name that TFDS gives a shard file."""
    return f"{DATASET_NAME}-{split}.{FILE_TYPE}-{shard:05d}-of-{shards:05d}"


def lengths_file(split: str) -> str:
    """Name of the file of token counts, uint32 [documents], in record order."""
    return f"lengths-{split}.npy"


class RecordSource:
    """The records of one split; thread-safe.

    Args:
      path: of the dataset, local or gs://.
      split: "train" or "valid".
      cache: where copies of what lies in a bucket are kept.

    Attributes:
      metadata: the dataset's metadata.
      lengths: tokens per record, uint32 [documents].
      offsets: tokens before each record, int64 [documents + 1].
      extras: memory-mapped per-token extras by name, each [tokens of the split].
      labels: name -> dtype of the records' labels, including extras.
    """

    def __init__(self, path: epath.PathLike, split: str, cache: HostCache | None = None):
        self.path, self.split = epath.Path(path), split
        self._cache = cache or HostCache()
        self._bucket: dict[str, BucketFile] = {} if files.is_local(path) else list_bucket(path)
        self.metadata: Metadata = read_metadata(path)
        counts = self.metadata.splits.get(split)
        if counts is None or not counts.documents:
            known = [name for name, c in self.metadata.splits.items() if c.documents]
            raise DataError(
                f"dataset {path}: no records in split {split!r} (there are: {', '.join(known) or 'none'}); "
                "change dataset.valid_fraction and prepare again"
            )
        self._counts = counts
        self._first = np.cumsum((0, *counts.shard_documents))
        self._check_files()
        self.lengths: UInt32[np.ndarray, documents] = self._read_lengths()
        self.offsets = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        self.extras = open_extras(self.path, split, int(self.offsets[-1]), self._bucket, self._cache)
        self.labels: dict[str, np.dtype] = dict.fromkeys(STORED_LABELS, np.dtype(np.bool_))
        self.labels |= {name: array.dtype for name, array in self.extras.items()}
        self._records = self._open()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Record:
        """Record `index`.

        Raises:
          DataError: the record or its shard is corrupt; the error names file and record.
          LacyError: a shard was replaced in its bucket. StorageError: the bucket refuses or does not answer.
        """
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        try:
            if isinstance(self._records, BucketShards):
                data = self._records.read(shard, int(index - self._first[shard]))
            else:
                data = self._records[index]
            record = decode_record(data, self.metadata.vocab_size)
            if len(record.tokens) != self.lengths[index]:
                raise ValueError(
                    f"{len(record.tokens)} tokens, {lengths_file(self.split)} says {self.lengths[index]}"
                )
        except (ValueError, RuntimeError) as error:
            where = f"{self._shard(shard)}, record {index - self._first[shard]}"
            raise DataError(
                f"{where}: corrupt: {one_line(error)}; restore the file or prepare the dataset again"
            ) from error
        if not self.extras:
            return record
        a, b = self.offsets[index], self.offsets[index + 1]
        extras = {name: np.asarray(array[a:b]) for name, array in self.extras.items()}
        return dataclasses.replace(record, labels={**record.labels, **extras})

    def start_copying(self) -> None:
        """Copy what lies in a bucket to this host, in the background, as far as the cache has room."""
        if isinstance(self._records, BucketShards):
            self._records.start_copying()

    def stop_copying(self) -> None:
        """Stop it."""
        if isinstance(self._records, BucketShards):
            self._records.stop_copying()

    def wait_for_copies(self) -> None:
        """Wait until all is copied that there is room for."""
        if isinstance(self._records, BucketShards):
            self._records.wait()

    def _shard(self, shard: int) -> epath.Path:
        return self.path / shard_name(self.split, shard, len(self._counts.shard_documents))

    def _check_files(self) -> None:
        for shard, size in enumerate(self._counts.shard_bytes):
            file = self._shard(shard)
            if not (file.name in self._bucket or (not self._bucket and file.exists())):
                raise DataError(
                    f"dataset shard not found: {file}; restore the file or prepare the dataset again"
                )
            have = self._bucket[file.name].size if self._bucket else file.stat().length
            if have != size:
                raise DataError(
                    f"dataset shard {file}: {have} bytes, expected {size}: truncated or overwritten; "
                    "restore it or prepare the dataset again"
                )

    def _read_lengths(self) -> UInt32[np.ndarray, documents]:
        file = self.path / lengths_file(self.split)
        try:
            lengths = files.read_array(file, "dataset file", np.uint32, (self._counts.documents,))
        except DataError as error:
            raise DataError(f"{error}; prepare the dataset again") from error
        if int(lengths.sum(dtype=np.int64)) != self._counts.tokens:
            raise DataError(
                f"dataset file {file} does not match metadata.json ({self._counts.tokens} tokens); "
                "prepare the dataset again"
            )
        return lengths

    def _open(self) -> tfds.core.data_sources.BaseDataSource | BucketShards:
        if self._bucket:
            shards = [self._bucket[self._shard(i).name] for i in range(len(self._counts.shard_documents))]
            return BucketShards(shards, self._counts.shard_documents, self._cache)
        try:
            builder = tfds.builder_from_directory(self.path)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            return builder.as_data_source(self.split, deserialize_method=raw)
        except Exception as error:  # A damaged dataset_info.json or features.json raises many kinds.
            raise DataError(
                f"dataset {self.path}: TFDS cannot open split {self.split!r}: {one_line(error)}; "
                "prepare the dataset again"
            ) from error


def open_split(path: epath.PathLike, split: str, cache: HostCache | None = None) -> RecordSource:
    """Open split "train" or "valid" of the finished dataset in folder `path`, local or gs://.

    Raises:
      DataError: the dataset is unfinished, the split is empty, or a file is missing or truncated.
      StorageError: the bucket refuses or does not answer.
    """
    return RecordSource(path, split, cache)


def splits_of(path: epath.PathLike, split: str = "") -> list[str]:
    """The non-empty splits of the finished dataset in `path`; only `split`, if given.

    Raises:
      DataError: the dataset is unfinished, or `split` is empty or unknown.
    """
    full = [name for name, counts in read_metadata(path).splits.items() if counts.documents]
    if split and split not in full:
        raise DataError(
            f"dataset {path}: no records in split {split!r} (there are: {', '.join(full) or 'none'})"
        )
    return [split] if split else full
