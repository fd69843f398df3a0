"""Adding a per-token extra to a finished dataset."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Iterable

import numpy as np
from etils import epath

from lacy_jax.dataset.extras import DTYPES, extra_file
from lacy_jax.dataset.metadata import read_metadata, write_metadata
from lacy_jax.dataset.source import open_split
from lacy_jax.errors import DataError, LacyError


def write_extra(path: epath.PathLike, name: str, split: str, values: Iterable[np.ndarray]) -> None:
    """Store one extra for every record of a split; replaces an earlier one.

    Args:
      path: folder of a finished dataset.
      name: "judge" (bool) or "reference_nll" (nats; value i belongs to token i given tokens before it, so the
        value of the first token is never used).
      split: "train" or "valid".
      values: one array [n] per record, in record order, n its number of tokens; streamed.

    Raises:
      DataError: unknown name, wrong number of records, or an array whose length differs from its record's.
      LacyError: the disk is full; the earlier state is left as it was.
    """
    path = epath.Path(path)
    if name not in DTYPES:
        raise DataError(f"extra {name!r}: expected one of {', '.join(DTYPES)}")
    source = open_split(path, split)
    temporary = path / f".{extra_file(name, split)}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        out = np.lib.format.open_memmap(temporary, "w+", DTYPES[name], (int(source.offsets[-1]),))
        # A sparse file would let a full disk show up as SIGBUS in the middle of a write.
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        done = _fill(out, values, source.lengths, source.offsets, f"extra {name!r} of split {split!r}")
        if done != len(source):
            raise DataError(
                f"extra {name!r} of split {split!r}: values for {done} records, the split has {len(source)}"
            )
        out.flush()
        temporary.replace(path / extra_file(name, split))
    except OSError as error:
        raise LacyError(
            f"cannot write {path / extra_file(name, split)}: {error.strerror or error}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    metadata = read_metadata(path)
    names = tuple(sorted({*metadata.extras, name}))
    write_metadata(path, dataclasses.replace(metadata, extras=names))


def _fill(
    out: np.ndarray, values: Iterable[np.ndarray], lengths: np.ndarray, offsets: np.ndarray, what: str
) -> int:
    done = 0
    for index, value in enumerate(values):
        if index >= len(lengths):
            return index + 1
        if len(value) != lengths[index]:
            raise DataError(
                f"{what}: {len(value)} values for record {index}, which has {lengths[index]} tokens"
            )
        out[offsets[index] : offsets[index + 1]] = value
        done = index + 1
    return done
