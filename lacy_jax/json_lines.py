"""JSON Lines: one value per line, where only a line feed ends a line.

`str.splitlines` also breaks at U+2028, U+0085, form feeds and the like, all of which may occur inside a JSON string.
All JSON Lines are read through this module.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, AnyStr

from etils import epath

from lacy_jax.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def split_lines(data: AnyStr) -> list[AnyStr]:
    """The lines of a file's content without line ends or byte order mark; an empty last line is left out."""
    mark, feed, carriage = (
        ("\ufeff", "\n", "\r") if isinstance(data, str) else (codecs.BOM_UTF8, b"\n", b"\r")
    )
    lines = [line.removesuffix(carriage) for line in data.removeprefix(mark).split(feed)]
    return lines if lines[-1] else lines[:-1]


def parse_line(line: bytes | str) -> Any:
    """The value on a line.

    Raises:
      ValueError: the line is not JSON; says why in one line.
    """
    try:
        return json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        reason = f"invalid UTF-8 at byte {error.start} (0x{error.object[error.start]:02x}): convert the file to UTF-8"
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at column {error.colno})"
    except ValueError as error:  # A number of thousands of digits.
        reason = f"not JSON we can read ({str(error).split(';')[0]})"
    except RecursionError:
        reason = "not JSON we can read (nested too deep)"
    raise ValueError(reason)


def parse_object(line: bytes | str) -> dict[str, Any]:
    """The object on a line; all its strings are valid Unicode.

    Raises:
      ValueError: the line is not JSON, not an object, or has a lone surrogate.
    """
    value = parse_line(line)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, not a {type(value).__name__}")
    if _SURROGATE.search(line if isinstance(line, str) else line.decode("utf-8-sig")):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a string with a lone surrogate, which is not Unicode text") from None
    return value


def objects(lines: Iterable[bytes | str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("NAME:LINE", object) for every line that is not blank.

    Raises:
      DataError: names the first line that holds no object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"{name}:{number}", parse_object(line)
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}") from None


def read_objects(path: epath.PathLike, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`objects` of a file; `what` names the file in the error ("prompts").

    Raises:
      DataError: the file cannot be read, or a line holds no object.
    """
    path = epath.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path}: {error.strerror or error}") from None
    yield from objects(split_lines(data), path.name)
