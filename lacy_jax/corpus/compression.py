"""Text files as streams of lines or of items of JSON, plain or compressed (.gz .bz2 .xz .zst), with errors that name the file."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import glob
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import ijson
from etils import epath

from lacy_jax.errors import DataError
from lacy_jax.files import is_local

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd.open}
_CORRUPT = (EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError, gzip.BadGzipFile)


def find_files(path: str, field: str = "config.corpus.path") -> list[str]:
    """The files that `path`, a file or a glob, stands for, sorted; `field` is where it was given, for errors.

    Raises:
      DataError: there is none, or it is a folder.
    """
    if not path:
        raise DataError(f"{field} is empty: give a file or a glob")
    if any(character in path for character in "*?["):
        if is_local(path):
            found = sorted(name for name in glob.glob(path, recursive=True) if epath.Path(name).is_file())
        else:
            fixed = path[: min(path.find(c) for c in "*?[" if c in path)].rsplit("/", 1)[0]
            found = sorted(str(p) for p in epath.Path(fixed).glob(path[len(fixed) + 1 :]) if p.is_file())
        if not found and not epath.Path(path).exists():
            raise DataError(f"no file matches {path} ({field})")
        if found:
            return found
    if epath.Path(path).is_dir():
        raise DataError(f"{path} is a folder: give a file or a glob such as {path.rstrip('/')}/* ({field})")
    if not epath.Path(path).exists():
        raise DataError(f"file not found: {path} ({field})")
    return [path]


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """Open `path` for reading, decompressed by its suffix.

    Raises:
      DataError: the file cannot be read, or its compressed data is corrupt or cut off (raised where the
        reading happens inside the `with` block).
    """
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(epath.Path(path).open("rb"))
            opener = _OPENERS.get(epath.Path(path).suffix.lower())
            yield stack.enter_context(opener(raw)) if opener else raw
    except _CORRUPT as error:
        raise DataError(f"{path}: compressed data corrupt or cut off ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a file, one at a time."""
    with open_binary(path) as stream:
        # BufferedReader gives lines of any length without holding more than one.
        buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
        for number, line in enumerate(buffered, start=1):
            yield number, line.rstrip(b"\r\n")


def read_items(path: str, key: str) -> Iterator[Any]:
    """The items of a list in a JSON file, one at a time: of the list `key` of its object, or of the list that it is.

    Half of a surrogate pair, which is no text, becomes "?".

    Raises:
      DataError: no JSON, cut off, or nothing in such a list.
    """
    with open_binary(path) as stream:
        buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
        if buffered.peek(3)[:3] == codecs.BOM_UTF8:
            buffered.read(3)
        while buffered.peek(1)[:1].isspace():
            buffered.read(1)
        item = None
        try:
            prefix = "item" if buffered.peek(1)[:1] == b"[" else f"{key}.item"
            for item in ijson.items(buffered, prefix, use_float=True):
                yield item
        except (ijson.JSONError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: no JSON ({' '.join(str(error).split())[:200]})") from None
        if item is None:
            raise DataError(f"{path}: nothing in a list `{key}`")
