"""Per-token extras: labels added after the dataset was built, such as the nll of a model trained on it.

An extra is stored beside the shards as one flat array per split, in record order (`extra-NAME-SPLIT.npy`, one
value per stored token), so that adding one rewrites no record. A policy reads it by its name, which can be any.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping

import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.dataset.bucket import BucketFile, keep
from lacy_jax.dataset.host_cache import CacheFull, HostCache
from lacy_jax.errors import DataError, StorageError

STORED_AS = (np.dtype(np.bool_), np.dtype(np.int32), np.dtype(np.float32))
"""Allowed dtypes of an extra."""


def extra_file(name: str, split: str) -> str:
    """File name of extra `name` of `split`."""
    return f"extra-{name}-{split}.npy"


_BLOCKS, _BLOCK = 64, 4096


def fingerprint_of(values: np.ndarray) -> str:
    """Hash of an extra's size and of 64 blocks of 4,096 values spread over it, so that hashing 10 GB is as fast as 1 MB.

    Another model or judge changes the values everywhere, and so in some block.
    """
    digest = hashlib.sha256(f"{values.dtype} {len(values)}".encode())
    for start in np.linspace(0, max(len(values) - _BLOCK, 0), _BLOCKS).astype(np.int64):
        digest.update(np.ascontiguousarray(values[start : start + _BLOCK]).tobytes())
    return digest.hexdigest()[:16]


def open_extras(
    path: epath.Path, split: str, tokens: int, bucket: Mapping[str, BucketFile], cache: HostCache
) -> dict[str, np.ndarray]:
    """Memory-mapped extras of `split`, by name; `tokens` is the split's token count.

    Those in a bucket are copied to this host first, because every row reads from all over them.

    Args:
      bucket: the dataset's files, if they lie in a bucket. cache: where copies are kept.

    Raises:
      DataError: an extra is unreadable or has another length.
      StorageError: the cache has no room for one.
    """
    found: dict[str, np.ndarray] = {}
    start, end = extra_file("*", split).split("*")
    if bucket:
        there = sorted(name for name in bucket if fnmatch.fnmatch(name, extra_file("*", split)))
    else:
        there = sorted(file.name for file in path.glob(extra_file("*", split)))
    for name in there:
        file = path / name
        if bucket:
            try:
                file = epath.Path(keep(bucket[name], cache, needed=True))
            except CacheFull as full:
                raise StorageError(f"no room for a copy of {path / name}: {full}") from None
        try:
            array = files.read_array(file, "dataset extra", STORED_AS, (tokens,), mapped=True)
        except DataError as error:
            raise DataError(f"{error}; delete it or write it again") from error
        found[name.removeprefix(start).removesuffix(end)] = array
    return found
