"""Readers: from files to a stream of records, one reader per kind of corpus.

A record is a place ("bios.jsonl.xz:17") and a function that parses it, so that processes which share a corpus
parse only their own share. Parsing returns a `Document`, or None if the record is not a document of the corpus (a
redirect in a dump), or raises `BadRecord`. Damage to a whole file (cut-off compression, broken XML) is not a bad
record: nothing after it can be trusted, so it is a `DataError` whatever `config.corpus.on_bad_record` says.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lacy_jax.corpus.compression import read_lines
from lacy_jax.corpus.document import Document
from lacy_jax.errors import DataError
from lacy_jax.json_lines import parse_line

END_OF_TEXT = b"<|endoftext|>"
"""A line that separates documents within one plain text file."""


class BadRecord(Exception):
    """A record that cannot become a document; `str(error)` says why. The corpus counts it or raises a DataError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record of a corpus: `where` names it in errors, `parse()` makes the document."""

    where: str
    parse: Callable[[], Document | None]


def decode_utf8(data: bytes) -> str:
    """UTF-8 text without a byte order mark.

    Raises:
      BadRecord: invalid UTF-8; names the byte (counted from 0) within the record.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise BadRecord(
            f"invalid UTF-8 at byte {error.start} (0x{byte:02x}): convert the file to UTF-8"
        ) from None


def make_document(id_: str, text: Any, title: Any, field: str) -> Document:
    """A document, checked.

    Raises:
      BadRecord: the text is missing, is not a string, is empty or only white space, or holds lone surrogates.
    """
    if text is None:
        raise BadRecord(f"has no field {field!r}: set config.corpus.text_field")
    if not isinstance(text, str):
        raise BadRecord(f"field {field!r} is {type(text).__name__}, not a string")
    if not text or text.isspace():
        raise BadRecord(f"field {field!r} has no text" if field else "has no text")
    document = Document(id=id_, text=text, title=title if isinstance(title, str) else "")
    for name, value in (("text", text), ("title", document.title), ("id", id_)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecord(
                f"character {error.start} of the {name} is a lone surrogate, which is not Unicode text"
            ) from None
    return document


def document_of(row: Mapping[str, Any], default_id: str, text_field: str) -> Document:
    """The document of a row: the text is in `text_field`; `id` and `title` are optional.

    Raises:
      BadRecord: as `make_document`.
    """
    id_ = row.get("id")
    id_ = default_id if id_ in (None, "") else str(id_)
    return make_document(id_, row.get(text_field), row.get("title"), text_field)


def read_jsonl(
    path: str, text_field: str, make: Callable[[Mapping[str, Any], str], Document | None] | None = None
) -> Iterator[Record]:
    """One record per line that is not blank; `id` defaults to "FILE:LINE", `title` to "".

    Args:
      make: makes another document from (object, default id).
    """
    make = make or functools.partial(document_of, text_field=text_field)
    name = os.path.basename(path)
    for number, line in read_lines(path):
        if line and not line.isspace():
            default_id = f"{name}:{number}"
            yield Record(
                f"{path}:{number}", functools.partial(_parse_json, line, default_id, text_field, make)
            )


def _parse_json(
    line: bytes, default_id: str, text_field: str, make: Callable[[Mapping[str, Any], str], Document | None]
) -> Document | None:
    try:
        value = parse_line(line)
    except ValueError as error:
        raise BadRecord(str(error)) from None
    if not isinstance(value, dict):
        raise BadRecord(f"is a JSON {type(value).__name__}, not an object with the field {text_field!r}")
    return make(value, default_id)


def read_text(path: str) -> Iterator[Record]:
    """One file is one document, unless lines `<|endoftext|>` divide it into several.

    The id is the file name, with the number of the first line if the file holds several; the title is the
    file name without suffixes.
    """
    name = os.path.basename(path)
    title = name.split(".")[0]
    lines: list[bytes] = []
    first = 1
    separated = False
    for number, line in read_lines(path):
        if line.strip() == END_OF_TEXT:
            separated = True
            if any(map(bytes.strip, lines)):
                yield Record(
                    f"{path}:{first}", functools.partial(_parse_text, lines, f"{name}:{first}", title)
                )
            lines, first = [], number + 1
        else:
            lines.append(line)
    if not separated:
        yield Record(path, functools.partial(_parse_text, lines, name, title))
    elif any(map(bytes.strip, lines)):
        yield Record(f"{path}:{first}", functools.partial(_parse_text, lines, f"{name}:{first}", title))


def _parse_text(lines: list[bytes], id_: str, title: str) -> Document:
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(decode_utf8(line))
        except BadRecord as error:
            raise BadRecord(f"line {number}: {error}") from None
    return make_document(id_, "\n".join(texts).strip("\n"), title, "")


def read_tfds(path: str, split: str, text_field: str) -> Iterator[Record]:
    """Records of a TFDS dataset: "name", "name/config:version", or the folder of a prepared one.

    Read as a random-access source, without TensorFlow; the dataset must have been prepared in the ArrayRecord
    format (or be downloadable).

    Raises:
      DataError: no such dataset, split or field, or it cannot be read without TensorFlow.
    """
    source = open_tfds(path, split)
    features = getattr(source.dataset_info, "features", None) or {}
    if text_field not in features:
        raise DataError(
            f"{path} has no field {text_field!r} (it has {', '.join(sorted(features))}): set config.corpus.text_field"
        )
    for index in range(len(source)):
        where = f"{path}/{split}:{index}"
        yield Record(where, functools.partial(_parse_example, source, index, where, text_field))


def open_tfds(path: str, split: str) -> Any:
    """The random-access source of a TFDS dataset; see `read_tfds`.

    Raises:
      DataError: as there.
    """
    import tensorflow_datasets as tfds  # Slow to import, and needed only by this kind of corpus.

    try:
        if os.path.isfile(os.path.join(path, "dataset_info.json")):
            return tfds.builder_from_directory(path).as_data_source(split=split)
        return tfds.data_source(path, split=split)
    except tfds.core.registered.DatasetNotFoundError:
        raise DataError(f"no TFDS dataset named {path!r} (config.corpus.path)") from None
    except KeyboardInterrupt:
        raise
    except Exception as error:  # Builders raise whatever they like, from import errors to download failures.
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"TFDS dataset {path!r}, split {split!r}: {type(error).__name__}: {reason}"
        ) from error


def _parse_example(source: Any, index: int, where: str, text_field: str) -> Document:
    try:
        example = source[index]
    except (ValueError, KeyError, IndexError) as error:
        raise BadRecord(f"cannot be read: {' '.join(str(error).split())}") from error
    text = example[text_field]
    text = decode_utf8(text) if isinstance(text, bytes) else text
    title = example.get("title", "")
    title = decode_utf8(title) if isinstance(title, bytes) else title
    id_ = example.get("id", where)
    return make_document(decode_utf8(id_) if isinstance(id_, bytes) else str(id_), text, title, text_field)
