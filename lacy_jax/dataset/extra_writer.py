"""Adding a per-token extra to a finished dataset."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterable

import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.dataset.extras import STORED_AS, extra_file
from lacy_jax.dataset.metadata import read_metadata, write_metadata
from lacy_jax.dataset.records import STORED_LABELS
from lacy_jax.dataset.source import open_split
from lacy_jax.errors import DataError, LacyError

_STORED_BY_KIND = dict(zip("biuf", (STORED_AS[0], STORED_AS[1], STORED_AS[1], STORED_AS[2]), strict=True))
"""Kind of dtype -> stored dtype. nlls are float32, because float16 cannot resolve the ranking under rho."""


def write_extra(path: epath.PathLike, name: str, split: str, values: Iterable[np.ndarray]) -> None:
    """Store one extra for every record of a split; replaces an earlier one.

    Args:
      path: folder of a finished dataset.
      name: the name by which a policy reads it: "judge" (bool), "reference_nll" (nats; value i is that of token i
        given the tokens before it, so the first token's value is never used), or one of your own.
      split: "train" or "valid".
      values: one array [n] per record, in record order, n being its number of tokens; streamed. The first array
        decides whether they are stored as bool, int32 or float32.

    Raises:
      DataError: the name is not allowed, the values are not numbers, the number of records is wrong, or an array has
        another type than the first or another length than its record.
      LacyError: the disk is full; the dataset is left as it was.
    """
    path = epath.Path(path)
    if not name.isidentifier() or name in STORED_LABELS:
        raise DataError(
            f"extra {name!r}: expected a name of letters, digits and _ other than {', '.join(STORED_LABELS)}"
        )
    fill_extra(path, name, split, open_split(path, split).lengths, values)
    metadata = read_metadata(path)
    names = tuple(sorted({*metadata.extras, name}))
    write_metadata(path, dataclasses.replace(metadata, extras=names))


def fill_extra(
    path: epath.Path, name: str, split: str, lengths: np.ndarray, values: Iterable[np.ndarray]
) -> None:
    """Write the file of an extra, completely or not at all; the caller updates the metadata.

    Args:
      lengths: tokens of each record of the split.

    Raises:
      DataError, LacyError: see `write_extra`.
    """
    what = f"extra {name!r} of split {split!r}"
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    values = iter(values)
    head = [np.asarray(value) for value in itertools.islice(values, 1)]
    dtype = _STORED_BY_KIND.get(head[0].dtype.kind) if head else np.bool_
    if dtype is None:
        raise DataError(f"{what}: values of dtype {head[0].dtype}; expected bool, integers or floats")
    final = path / extra_file(name, split)
    folder = path if files.is_local(path) else epath.Path(tempfile.gettempdir())
    temporary = folder / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        out = np.lib.format.open_memmap(temporary, "w+", dtype, (int(offsets[-1]),))
        # With a sparse file, a full disk would raise SIGBUS in the middle of a write.
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        done = _fill(out, itertools.chain(head, values), lengths, offsets, what)
        if done != len(lengths):
            raise DataError(f"{what}: values for {done} records, the split has {len(lengths)}")
        out.flush()
        if files.is_local(final):
            temporary.replace(final)
        else:
            files.upload(temporary, final)
    except OSError as error:
        raise LacyError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(
    out: np.ndarray, values: Iterable[np.ndarray], lengths: np.ndarray, offsets: np.ndarray, what: str
) -> int:
    done = 0
    for index, value in enumerate(map(np.asarray, values)):
        if index >= len(lengths):
            return index + 1
        if not np.can_cast(value.dtype, out.dtype, "same_kind"):
            raise DataError(
                f"{what}: record {index} has values of dtype {value.dtype}, earlier ones {out.dtype}"
            )
        if len(value) != lengths[index]:
            raise DataError(
                f"{what}: {len(value)} values for record {index}, which has {lengths[index]} tokens"
            )
        out[offsets[index] : offsets[index + 1]] = value
        done = index + 1
    return done
