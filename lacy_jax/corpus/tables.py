"""Tables as corpora: Parquet files, and folders of Hugging Face `datasets` (Arrow or Parquet), read by pyarrow.

A row is a record. Only the requested columns are read, one batch of rows at a time, so memory grows neither with the
file nor with its row groups. Files may be local or in buckets.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath, epy

from lacy_jax import files
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.readers import BadRecord, Record, document_of
from lacy_jax.errors import DataError

with epy.lazy_imports():  # Only tables need it; labels and objectives are used without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH = 512
"""Rows decoded at once."""
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Last bytes of a complete Arrow stream; pyarrow reports no error for a stream that was cut off between batches."""
_TEXT_TYPES = ("is_string", "is_large_string", "is_binary", "is_large_binary", "is_string_view", "is_null")
_PATTERNS = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
"""Where the Parquet files of a folder may be; limits the search in buckets."""
_SPLITS = "train test validation valid val dev eval".split()
"""Words in file names that mark the split, as on the Hugging Face hub."""

Make = Callable[[Mapping[str, Any], str], Document | None]
"""(row, id to use if it has none) -> document; raises BadRecord."""


def read_table(path: str, fields: Sequence[str], make: Make | None = None) -> Iterator[Record]:
    """Records of a Parquet or Arrow file (the first bytes tell which); the default id is "FILE:ROW", rows from 0.

    Args:
      fields: columns to read; the first holds the text and must exist.
      make: a document of a row; None = the text in the first column, with the columns `id` and `title`.

    Raises:
      DataError: the file cannot be read, is damaged or cut off, or has no such column of text.
    """
    make = make or functools.partial(document_of, text_field=fields[0])
    name, row = os.path.basename(path), 0
    with _named_errors(path), epath.Path(path).open("rb") as stream:
        for batch in _batches(path, stream, fields):
            _check_offsets(batch)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                yield Record(
                    f"{path}:{row}", functools.partial(_parse_row, columns, index, f"{name}:{row}", make)
                )
                row += 1


def _check_offsets(batch: pa.RecordBatch) -> None:
    """Raises pyarrow's error if a damaged file points outside its buffers: reading there would crash the process.

    Strings are checked as bytes: a string that is not UTF-8 is a bad row, not a bad file.
    """
    for column in batch.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            large = pa.types.is_large_string(column.type)
            column = column.view(pa.large_binary() if large else pa.binary())
        column.validate(full=not pa.types.is_string_view(column.type))


def _parse_row(columns: dict[str, Any], index: int, default_id: str, make: Make) -> Document | None:
    row: dict[str, Any] = {}
    for name, column in columns.items():
        try:
            value = column[index].as_py()
            row[name] = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise BadRecord(f"column {name!r}: invalid UTF-8 at byte {error.start}") from None
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise BadRecord(f"column {name!r}: {' '.join(str(error).split())}") from None
    return make(row, default_id)


def _batches(path: str, stream: Any, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of the columns among `fields` that the file has."""
    magic = stream.read(6)
    stream.seek(0)
    if magic[:4] == b"PAR1":
        table = pq.ParquetFile(stream, buffer_size=1 << 20)
        yield from table.iter_batches(BATCH, columns=_chosen(path, table.schema_arrow, fields))
        return
    if magic == b"ARROW1":
        schema = pa.ipc.open_file(stream).schema
        reader = pa.ipc.open_file(stream, options=_only(schema, _chosen(path, schema, fields)))
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        return
    if magic[:4] != b"\xff\xff\xff\xff":
        raise DataError(f"{path}: neither a Parquet nor an Arrow file")
    stream.seek(-len(_END_OF_STREAM), os.SEEK_END)
    if stream.read() != _END_OF_STREAM:
        raise DataError(f"{path}: cut off: the Arrow stream has no end; fetch it again")
    stream.seek(0)
    schema = pa.ipc.open_stream(stream).schema
    stream.seek(0)
    yield from pa.ipc.open_stream(stream, options=_only(schema, _chosen(path, schema, fields)))


def _only(schema: pa.Schema, names: Sequence[str]) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])


def _chosen(path: str, schema: pa.Schema, fields: Sequence[str]) -> list[str]:
    """The columns among `fields` that occur exactly once in the file.

    Raises:
      DataError: the first is missing, or holds no text.
    """
    wanted = fields[0]
    if schema.names.count(wanted) != 1:
        has = ", ".join(schema.names[:20]) or "none"
        raise DataError(f"{path}: no column {wanted!r} (it has {has}): set config.corpus.text_field")
    kind = schema.field(wanted).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(getattr(pa.types, name)(kind) for name in _TEXT_TYPES if hasattr(pa.types, name)):
        raise DataError(f"{path}: column {wanted!r} holds {kind}, not text: set config.corpus.text_field")
    return [name for name in dict.fromkeys(fields) if schema.names.count(name) == 1]


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: damaged or cut off ({' '.join(str(error).split())[:200]}): fetch it again"
        ) from error
    except OSError as error:  # pyarrow raises it for damaged pages, too.
        raise DataError(
            f"cannot read {path}: {error.strerror or ' '.join(str(error).split())[:200]}"
        ) from error


def dataset_files(path: str, split: str) -> list[str]:
    """The files of one split in a folder that `datasets` wrote (`save_to_disk`) or that was downloaded from the hub.

    Raises:
      DataError: no such folder or split, or files that its index names are missing.
    """
    if not path:
        raise DataError("config.corpus.path is empty: give a folder of `datasets`")
    folder = epath.Path(path)
    if not folder.is_dir():
        raise DataError(f"folder not found: {path} (config.corpus.path)")
    if (folder / "dataset_dict.json").exists():
        splits = _listed(folder / "dataset_dict.json", "splits")
        if split not in splits:
            raise DataError(
                f"{path} has no split {split!r} (it has {', '.join(splits)}): set config.corpus.split"
            )
        folder = folder / split
    if (folder / "state.json").exists():
        found = [folder / name for name in _listed(folder / "state.json", "_data_files", "filename")]
        missing = [file for file in found if not file.exists()]
        if missing or not found:
            raise DataError(
                f"{folder}: {missing[0].name if missing else 'data'} is missing: fetch the folder again"
            )
        return [os.fspath(file) for file in found]
    relative = {
        os.fspath(file.relative_to(folder)): os.fspath(file)
        for pattern in _PATTERNS
        for file in sorted(folder.glob(pattern))
    }
    if not relative:
        raise DataError(
            f"{path}: no folder of `datasets`: neither state.json nor *.parquet in it (config.corpus.path)"
        )
    named = {
        word: [file for name, file in relative.items() if _speaks_of(name, word)]
        for word in {*_SPLITS, split}
    }
    if named[split]:
        return named[split]
    others = sorted(word for word, of_word in named.items() if of_word)
    if others or split != "train":
        raise DataError(
            f"{path} has no split {split!r} (it has {', '.join(others) or 'train'}): set config.corpus.split"
        )
    return list(relative.values())


def _listed(file: epath.Path, key: str, inner: str = "") -> list[str]:
    """File names in a list of a JSON file; none of them points outside its folder."""
    value = files.read_json(file, "index of `datasets`")
    entries = value.get(key) if isinstance(value, dict) else None
    listed = entries if isinstance(entries, list) else [None]
    names = [entry.get(inner) if inner and isinstance(entry, dict) else entry for entry in listed]
    if not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
        raise DataError(f"{file}: no list {key!r} of names as `datasets` writes it")
    return [str(name) for name in names]


def _speaks_of(name: str, split: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(split)}(?![^\W_])", name) is not None
