"""A parsed text: the input of the rules, whichever parser made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lacy_jax.labels.spans import Span


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One word or punctuation mark: characters [start, end) of the text and its Penn Treebank tag ("NNP", "VBD", "_SP")."""

    start: int
    end: int
    tag: str


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """A named entity: characters [start, end) and its OntoNotes label ("PERSON", "DATE")."""

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Parse:
    """A text with its tokens, entities and noun chunks, each in text order."""

    text: str
    tokens: tuple[Token, ...]
    entities: tuple[Entity, ...]
    chunks: tuple[Span, ...]


def parse_of_doc(doc: Any) -> Parse:
    """From a spaCy `Doc` that has tags, entities and a dependency parse (for its noun chunks)."""
    return Parse(
        doc.text,
        tuple(Token(t.idx, t.idx + len(t), t.tag_) for t in doc),
        tuple(Entity(e.start_char, e.end_char, e.label_) for e in doc.ents),
        tuple((c.start_char, c.end_char) for c in doc.noun_chunks) if doc.has_annotation("DEP") else (),
    )


def parse_of_record(record: Mapping[str, Any]) -> Parse:
    """From a stored parse: `text`, `tok` = [[start, length, tag, ...], ...], `ents` = [[start, end, label], ...],
    `chunks` = [[start, end], ...], all by character offset.

    Raises:
      KeyError, TypeError, ValueError: it is none.
    """
    text = record["text"]
    tokens = tuple(Token(start, start + length, tag) for start, length, tag, *_ in record["tok"])
    entities = tuple(Entity(start, end, label) for start, end, label in record["ents"])
    chunks = tuple((start, end) for start, end in record["chunks"])
    ranges = [*((t.start, t.end) for t in tokens), *((e.start, e.end) for e in entities), *chunks]
    names = [text, *(token.tag for token in tokens), *(entity.label for entity in entities)]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a text, tag or label that is no string")
    if not all(type(start) is int is type(end) and 0 <= start < end <= len(text) for start, end in ranges):
        raise ValueError("a place outside of the text")
    return Parse(text, tokens, entities, chunks)


def joined(text: str, parts: Sequence[tuple[int, Parse]]) -> Parse:
    """The parse of a text that was parsed in parts, given as (offset of the part in the text, its parse)."""
    return Parse(
        text,
        tuple(Token(t.start + at, t.end + at, t.tag) for at, part in parts for t in part.tokens),
        tuple(Entity(e.start + at, e.end + at, e.label) for at, part in parts for e in part.entities),
        tuple((start + at, end + at) for at, part in parts for start, end in part.chunks),
    )
