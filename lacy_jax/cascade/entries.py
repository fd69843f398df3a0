"""What a dense index holds: passages of documents, rows of facts, and spans of a corpus with the text before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from lacy_jax.cascade.fact_database import read_facts
from lacy_jax.cascade.passages import sentences, split_passages
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError
from lacy_jax.json_lines import read_objects
from lacy_jax.tokenizer import Tokenizer

if TYPE_CHECKING:  # TFDS takes a second to import.
    from lacy_jax.dataset.records import Record

_SUBJECT_WORDS = 6
_RECENT_WORDS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One entry. Its shape tells what it is.

    A passage has a `context`, its text, and no value. A fact has an `attribute` and a `value`. A span has the `context` that
    led up to it, and its `value`.

    Attributes:
      title: whom or what it is about; "" if unknown.
    """

    title: str
    attribute: str = ""
    context: str = ""
    value: str = ""

    def key(self) -> str:
        """The text whose vector it is found by."""
        if self.attribute:
            return f"{self.title}, {self.attribute.replace('_', ' ')}"
        return self.context if self.value or not self.title else f"{self.title}: {self.context}"


def context_of(text: str) -> str:
    """What a text is about to say, in a few words: its first words, where its subject stands, and the last of the sentence
    it is in."""
    first = text.split(maxsplit=_SUBJECT_WORDS)[:_SUBJECT_WORDS]
    start = max((begin for begin, end in sentences(text) if text[begin:end].strip()), default=0)
    last = text[start:].split()[-_RECENT_WORDS:]
    return " ".join(last if start == 0 and len(text.split()) <= _RECENT_WORDS else [*first, "...", *last])


def of_documents(documents: Iterable[Document]) -> Iterator[Entry]:
    """The passages of documents."""
    for document in documents:
        for part in split_passages(document.text):
            yield Entry(document.title, context=part)


def of_facts(path: str) -> Iterator[Entry]:
    """The rows of a fact database or of a file, as `read_facts` reads them.

    Raises:
      DataError: missing or damaged.
    """
    return (Entry(entity, attribute, value=value) for entity, attribute, value in read_facts(path))


def of_records(records: Iterable[Record], tokenizer: Tokenizer) -> Iterator[Entry]:
    """The factual spans of labelled documents: the value is a longest run of factual tokens, the context what `context_of`
    keeps of the text before it. A span without anything before it is left out."""
    for record in records:
        for _, _, before, value in spans_of(record, tokenizer):
            if before.strip():
                yield Entry(record.title, context=context_of(before), value=value)


def spans_of(record: Record, tokenizer: Tokenizer) -> Iterator[tuple[int, int, str, str]]:
    """The longest runs of factual tokens that are more than spaces: (first, after the last, the text before, the value).

    A piece that is only a space, as before a digit, is not factual and yet does not end a run.
    """
    factual = np.array(record.labels["factual"], np.int8)
    for at in np.flatnonzero(factual[:-2] & (1 - factual[1:-1]) & factual[2:]) + 1:
        factual[at] = tokenizer.piece_bytes(int(record.tokens[at])) == b" "
    edges = np.flatnonzero(np.diff(factual, prepend=0, append=0)).reshape(-1, 2)
    for start, end in edges.tolist():
        before = tokenizer.decode(record.tokens[:start])
        # Decoded together: a piece alone loses the space before it.
        value = tokenizer.decode(record.tokens[:end])[len(before) :].strip()
        if value:
            yield start, end, before, value


def read_deletions(path: str) -> Iterator[tuple[str, str, str]]:
    """(title, attribute, value) of JSONL objects with string `entity` or `title`, optional `attribute` and `value`; "" = any.

    Raises:
      DataError: missing, or a line (named) that names nothing.
    """
    for where, row in read_objects(path, "deletions"):
        parts = (row.get("entity", row.get("title")), row.get("attribute", ""), row.get("value", ""))
        if not all(isinstance(part, str) for part in parts) or not parts[0]:
            raise DataError(
                f"{where}: it needs a string `entity` or `title`; `attribute` and `value` are optional"
            )
        yield parts  # type: ignore[misc]
