"""Text files, plain or compressed (.gz .bz2 .xz .zst), as streams of lines or JSON items; errors name the file."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from etils import epath

from lacy_jax.errors import DataError
from lacy_jax.files import is_local

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd.open}
LONGEST_ITEM = 1 << 26
"""Most characters of one JSON item; reading a longer item fails."""
_CORRUPT = (EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError, gzip.BadGzipFile)


def find_files(path: str, field: str = "config.corpus.path") -> list[str]:
    """The files that `path` (a file or a glob) names, sorted; `field` is the config field that gave it, for errors.

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
    """The items of a list in a JSON file, one at a time: the list `key` of the top object, or the top list.

    Raises:
      DataError: not JSON, cut off, an item longer than `LONGEST_ITEM`, or the list is missing or empty.
    """
    with open_binary(path) as stream:
        raw = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
        found = False
        try:
            for item in _Scanner(io.TextIOWrapper(raw, encoding="utf-8-sig")).items_of(key):
                found = True
                yield item
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
            raise DataError(f"{path}: no JSON ({reason})") from None
        if not found:
            raise DataError(f"{path}: nothing in a list `{key}`")


class _Scanner:
    """JSON from a stream; at most one item is held in memory. (ijson does the same, but its memory is unlimited for
    many brackets in a row, and it writes "?" for half a surrogate pair.)"""

    def __init__(self, stream: IO[str]):
        self._read, self._decode = stream.read, json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False

    def items_of(self, key: str) -> Iterator[Any]:
        """See `read_items`; raises ValueError or RecursionError."""
        if self._peek() == "[":
            yield from self._items()
        else:
            self._expect("{")
            more = self._peek() != "}"
            while more:
                name = self._value()
                if not isinstance(name, str):
                    raise ValueError("a name that is no string")
                self._expect(":")
                if self._peek() == "[":  # Lists under other keys may be just as long.
                    for item in self._items():
                        if name == key:
                            yield item
                else:
                    self._value()
                more = self._goes_on("}")
            self._expect("}")
        if self._peek():
            raise ValueError("something after its end")

    def _items(self) -> Iterator[Any]:
        self._expect("[")
        more = self._peek() != "]"
        while more:
            yield self._value()
            more = self._goes_on("]")
        self._expect("]")

    def _goes_on(self, end: str) -> bool:
        if self._peek() == end:
            return False
        self._expect(",")
        return True

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # A number that ends here may continue.
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise ValueError(error.msg) from None
            self._fill()

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def _expect(self, mark: str) -> None:
        found = self._peek()
        if found != mark:
            raise ValueError(f"expected {mark!r}, found {found!r}" if found else f"cut off before {mark!r}")
        self._at += 1

    def _fill(self) -> None:
        """Read as many characters as are already held."""
        held = self._text[self._at :]
        if len(held) > LONGEST_ITEM:
            raise ValueError(f"an item that is damaged, or longer than {LONGEST_ITEM:,} characters")
        more = self._read(max(len(held), 1 << 16))
        self._text, self._at, self._ended = held + more, 0, not more
