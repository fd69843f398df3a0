"""Writing shards and finishing a dataset.

A shard is written under a temporary name and renamed when it is complete. The folder becomes a dataset that TFDS can
read when all shards are there and `finish` has written the lengths, TFDS's own metadata and, last, `metadata.json`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from lacy_jax import __version__, files
from lacy_jax.dataset.metadata import (
    BUILD_FOLDER,
    MOST_KINDS,
    SPLITS,
    Metadata,
    SplitCounts,
    write_metadata,
)
from lacy_jax.dataset.records import Record, encode_record, get_features
from lacy_jax.dataset.source import DATASET_NAME, FILE_TYPE, lengths_file
from lacy_jax.errors import LacyError, one_line

WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record per chunk, so that a record can be read alone. Compression would save a fifth of the 2.4 bytes per token,
but cost a third of the reading speed."""


class ShardWriter:
    """Writes the records of one shard of one split; a context manager.

    The final name appears only when the block ends without an error; a shard without records leaves no file. A shard for
    a bucket is written among the temporary files, because array_record writes local files only, and then uploaded.
    """

    def __init__(self, path: epath.Path, vocab_size: int):
        self._path = path
        folder = path.parent if files.is_local(path) else epath.Path(tempfile.gettempdir())
        self._temporary = folder / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
        self._vocab_size = vocab_size
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._lengths: list[int] = []
        self._factual = self._nongrammatical = 0

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, record: Record) -> None:
        """Append a record.

        Raises:
          DataError: labels and tokens differ in length.
          LacyError: the disk is full.
        """
        data = encode_record(record, self._vocab_size)
        try:
            if self._writer is None:
                self._writer = array_record_module.ArrayRecordWriter(
                    os.fspath(self._temporary), WRITER_OPTIONS
                )
            self._writer.write(data)
        except (RuntimeError, OSError) as error:
            raise self._failed(error) from error
        self._lengths.append(len(record.tokens))
        self._factual += int(record.labels["factual"].sum())
        self._nongrammatical += int(record.labels["nongrammatical"].sum())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None and files.is_local(self._path):
                    self._temporary.replace(self._path)
                elif kind is None:
                    files.upload(self._temporary, self._path)
        except (RuntimeError, OSError) as error:
            if kind is None:  # Otherwise the first error is the one to report.
                raise self._failed(error) from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def counts(self) -> SplitCounts:
        """Counts of what was written to this shard; call it after the block."""
        if not self._lengths:
            return SplitCounts()
        size = self._path.stat().length
        tokens, documents = sum(self._lengths), len(self._lengths)
        return SplitCounts(documents, tokens, self._factual, self._nongrammatical, (documents,), (size,))

    def lengths(self) -> np.ndarray:
        """Tokens per record, uint32."""
        return np.asarray(self._lengths, np.uint32)

    def _failed(self, error: BaseException) -> LacyError:
        why = re.sub(r"; (writing|at byte|Failed).*", "", one_line(error))
        return LacyError(
            f"cannot write {self._path}: {why}; free space or choose another dataset.path and run again: "
            "finished shards are kept"
        )


def merge_counts(parts: list[SplitCounts]) -> SplitCounts:
    """Counts of a split from those of its shards, in shard order."""
    return SplitCounts(
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        factual_tokens=sum(part.factual_tokens for part in parts),
        nongrammatical_tokens=sum(part.nongrammatical_tokens for part in parts),
        shard_documents=tuple(n for part in parts for n in part.shard_documents),
        shard_bytes=tuple(n for part in parts for n in part.shard_bytes),
    )


def merge_dropped(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What the readers of all shards left out, most frequent first; kinds beyond `MOST_KINDS` are summed."""
    total: collections.Counter[str] = collections.Counter()
    for part in parts:
        total.update(part)
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:MOST_KINDS])
    rest = sum(count for _, count in ranked[MOST_KINDS:])
    return {**kept, f"{len(ranked) - MOST_KINDS} other kinds": rest} if rest else kept


def finish(path: epath.PathLike, metadata: Metadata, lengths: dict[str, np.ndarray]) -> None:
    """Turn a folder of complete shards into a dataset.

    Args:
      path: folder whose shard files are numbered without gaps per split.
      metadata: complete, with counts; written last.
      lengths: tokens per record of each split.

    Raises:
      LacyError: the disk is full; the folder does not count as finished.
    """
    path = epath.Path(path)
    features = get_features(metadata.vocab_size)
    splits = []
    for split in SPLITS:
        counts = metadata.splits.get(split, SplitCounts())
        if not counts.documents:
            continue
        files.write_array(path / lengths_file(split), lengths[split].astype(np.uint32))
        template = tfds.core.ShardedFileTemplate(
            dataset_name=DATASET_NAME, data_dir=path, split=split, filetype_suffix=FILE_TYPE
        )
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(counts.shard_documents),
            num_bytes=sum(counts.shard_bytes),
            filename_template=template,
        )
        splits.append(info)
    try:
        tfds.folder_dataset.write_metadata(
            data_dir=os.fspath(path),
            features=features,
            split_infos=splits,
            version="1.0.0",
            description=f"Documents as labelled tokens, written by lacy_jax {__version__}.",
            check_data=False,
        )
    except OSError as error:
        raise LacyError(
            f"cannot write {path}: {error.strerror or error}; free space and run again"
        ) from error
    write_metadata(path, metadata)
    files.forget_listing(path / BUILD_FOLDER)
    with contextlib.suppress(Exception):  # What stays costs nothing but its space.
        (path / BUILD_FOLDER).rmtree()
