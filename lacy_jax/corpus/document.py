"""The documents of a corpus and the facts they state."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One fact that a text states and that is known to be true (synthetic world only).

    Attributes:
      start, end: character offsets of the value in the text.
      subject: who the fact is about (the person's full name).
      attribute: "birth_date", "birthplace", ...
      value: the stated value, equal to text[start:end].
    """

    start: int
    end: int
    subject: str
    attribute: str
    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus.

    Attributes:
      id: unique within the corpus; decides the train/validation split.
      text: the text, never empty.
      title: the subject of the text, or "".
      facts: exact facts, if the corpus knows them (synthetic world); else empty.
      judge: character ranges that a judge flagged (policy `judge`), if the corpus has such labels; else None.
      dropped: (kind, how many) of what the reader left out of the text.
    """

    id: str
    text: str
    title: str = ""
    facts: tuple[Fact, ...] = ()
    judge: tuple[tuple[int, int], ...] | None = None
    dropped: tuple[tuple[str, int], ...] = ()
