"""Reading a dataset that lies in a bucket of Google Cloud Storage.

array_record's reader asks the bucket for one range a record, so a run begins at once. Meanwhile whole shards are copied
to a folder of this host, as many as it may hold; records of a copied shard are read from there, without a request. The
order of rows spreads every batch over all shards, so no shard is worth more than another, and none is replaced.

Objects are named with their generation: a shard that is replaced under a run is found out, never mixed with the old one.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

import fsspec
from array_record.python import array_record_data_source
from etils import epath

from lacy_jax import files
from lacy_jax.dataset.host_cache import CacheFull, HostCache
from lacy_jax.errors import DataError, LacyError, StorageError, one_line

_BLOCK = 16 * 2**20
_SERVICE = "with a last message of"
"""In the reader's messages about the bucket; those about damaged bytes lack it."""


@dataclasses.dataclass(frozen=True)
class BucketFile:
    """An object as it was when the dataset was opened; `crc32c` is in base64, as the bucket says it."""

    path: str
    size: int
    generation: str
    crc32c: str

    @property
    def cache_name(self) -> str:
        """Its name in a host's cache: other content has another name."""
        digest = hashlib.sha256(f"{self.path}#{self.generation}".encode()).hexdigest()[:16]
        return f"{digest}-{self.path.rsplit('/', 1)[-1]}"


def list_bucket(path: epath.PathLike) -> dict[str, BucketFile]:
    """The objects of a folder by name.

    Raises:
      DataError: there is no such bucket or folder, or it is not in Google Cloud Storage.
      StorageError: the bucket refuses or does not answer.
    """
    if not os.fspath(path).startswith("gs://"):
        raise DataError(f"dataset {path}: ArrayRecord reads local files and gs:// only; copy the folder")
    files.check_storage(path)
    try:
        found = _client().ls(os.fspath(path), detail=True, refresh=True)
    except FileNotFoundError:
        raise DataError(f"dataset {path}: no such bucket or folder") from None
    except Exception as error:
        if not files.is_storage_failure(error):
            raise
        raise StorageError(f"cannot read {path}: {files.reason(error)}") from error
    objects = [one for one in found if one["type"] == "file"]
    return {
        one["name"].rsplit("/", 1)[-1]: BucketFile(
            f"gs://{one['name']}", int(one["size"]), str(one["generation"]), one.get("crc32c", "")
        )
        for one in objects
    }


def _client() -> Any:
    return fsspec.filesystem("gcs")


def keep(
    file: BucketFile, cache: HostCache, stop: threading.Event | None = None, needed: bool = False
) -> pathlib.Path:
    """The copy of `file` on this host, checked; copied now, unless it is there (`stop`, `needed`: see `HostCache.get`).

    Raises:
      CacheFull: there is no room for it.
      LacyError: it was replaced or deleted.
      StorageError: the bucket does not give it, or the disk fails.
    """
    try:
        return cache.get(
            file.cache_name,
            file.size,
            functools.partial(_blocks, file),
            functools.partial(_is_whole, file.crc32c),
            stop,
            needed,
        )
    except FileNotFoundError:
        raise _replaced(file) from None
    except Exception as error:
        if isinstance(error, LacyError) or not files.is_storage_failure(error):
            raise
        raise StorageError(f"cannot copy {file.path} to {cache.folder}: {files.reason(error)}") from error


def _blocks(file: BucketFile) -> Any:
    for start in range(0, file.size, _BLOCK):
        yield _client().cat_file(
            file.path, start=start, end=min(start + _BLOCK, file.size), generation=file.generation
        )


def _is_whole(crc32c: str, path: pathlib.Path) -> bool:
    import google_crc32c  # Comes with gcsfs.

    checksum = google_crc32c.Checksum()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            checksum.update(block)
    return not crc32c or base64.b64encode(checksum.digest()).decode() == crc32c


def _replaced(file: BucketFile) -> LacyError:
    return LacyError(
        f"{file.path} was replaced or deleted while it was in use (generation {file.generation} is gone); restore it, or "
        "start the run again to read what is there now"
    )


class BucketShards:
    """The records of a split whose shards lie in a bucket; thread-safe.

    Args:
      shards: the files, in order. documents: records of each.
      cache: where copies are kept.
    """

    def __init__(self, shards: Sequence[BucketFile], documents: Sequence[int], cache: HostCache):
        self._shards, self._documents, self._cache = shards, documents, cache
        self._readers = [
            self._reader(f"{shard.path}#{shard.generation}", count)
            for shard, count in zip(shards, documents, strict=True)
        ]
        self.local = [False] * len(shards)
        """Whether the records of a shard are read from this host."""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @staticmethod
    def _reader(path: str, count: int) -> array_record_data_source.ArrayRecordDataSource:
        # The range says how many records there are, so that nothing is opened before it is read.
        return array_record_data_source.ArrayRecordDataSource(f"{path}[0:{count}]")

    def read(self, shard: int, position: int) -> bytes:
        """The bytes of a record.

        Raises:
          RuntimeError: they are damaged.
          LacyError: the shard was replaced or deleted. StorageError: the bucket refuses or does not answer.
        """
        reader = self._readers[shard]
        try:
            return reader[position]
        except RuntimeError as error:
            file = self._shards[shard]
            if reader is not self._readers[shard]:  # Copied meanwhile.
                return self.read(shard, position)
            if self.local[shard]:  # Another run took its place in the cache.
                self.local[shard] = False
                self._readers[shard] = self._reader(f"{file.path}#{file.generation}", self._documents[shard])
                return self.read(shard, position)
            if _SERVICE not in str(error):
                raise
            if "Not Found" in str(error):
                raise _replaced(file) from error
            why = str(error).partition(_SERVICE)[2].partition("; reading")[0]
            raise StorageError(f"cannot read {file.path}: {one_line(why)}") from error

    def start_copying(self) -> None:
        """Copy shards in the background, in order, until there is no room; nothing waits for it."""
        if self._thread is None and self._cache.most_bytes:
            self._stop.clear()
            self._thread = threading.Thread(target=self._copy, name="dataset cache", daemon=True)
            self._thread.start()

    def stop_copying(self) -> None:
        """Stop it; what is copied stays in use."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until the copying has ended."""
        if self._thread is not None:
            self._thread.join()

    def _copy(self) -> None:
        for number, file in enumerate(self._shards):
            if self._stop.is_set():
                return
            if self.local[number]:
                continue
            try:
                path = keep(file, self._cache, self._stop)
            except CacheFull as full:
                if not self._stop.is_set():
                    rest = (
                        f"{len(self._shards) - number} of {len(self._shards)} shards are read from the bucket"
                    )
                    print(f"note: dataset cache: {full}; {rest}", file=sys.stderr, flush=True)
                return
            except Exception as error:  # Reading from the bucket goes on, and says what is wrong with it.
                print(f"warning: dataset cache: {one_line(error)}", file=sys.stderr, flush=True)
                return
            self._readers[number] = self._reader(str(path), self._documents[number])
            self.local[number] = True
