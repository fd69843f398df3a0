"""A fact database as partner: it knows values, not language."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lacy_jax.cascade.fact_database import LONGEST_CUE, FactDatabase
from lacy_jax.cascade.partners.base import CONNECTORS, PARTNERS, Partner, PartnerKind, check_reach, cut
from lacy_jax.cascade.stated import Said, Span, folded, is_number

_TOKEN = re.compile(r"\w+|[^\w\s]")
_NAME = re.compile(r"[^\W\d_][\w.'’-]*(?:\s+[^\W\d_][\w.'’-]*)*")
_LONGEST_SUBJECT = 120
_RECENT = 300
"""How many characters before a place are searched for its cue."""
_STEM = 5
_KINDS = frozenset("date place year name number day month time the and".split())
"""Words in attribute names that tell the kind of value, not what it is about."""
_LONGEST_BEGINNING = 6
"""At most this many words of a value may be written before the rest of it is asked for."""


def subject_of(text: str) -> str:
    """The name at the start of a text: its first words, up to a mark or a lower-case word."""
    match = _NAME.match(text[:_LONGEST_SUBJECT].lstrip('"“( '))
    name: list[str] = []
    for word in match[0].split() if match else []:
        if word.islower() and word not in CONNECTORS:
            break
        name.append(word)
    return " ".join(name)


class DatabasePartner(Partner):
    """The value that a text is about to state, or the rest of one it has begun; "" where it asks for none.

    The entity is the text's subject (the name it begins with, matched fuzzily). The attribute is found by the cue at
    the text's end. A value that the text has already stated is not stated again.

    Args:
      database: the facts.
      reach: "token" (a word or a mark), "word", or "span" (the whole value).
    """

    name = "database"

    def __init__(self, database: FactDatabase, reach: str = "span"):
        self.database, self.reach = database, check_reach(reach)

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; never fails."""
        return [cut(self._answer(text), self.reach) for text in texts]

    def typical_texts(self) -> list[str]:
        """Values of the database."""
        return [cut(" " + value, self.reach) for value in self.database.sample_values()]

    def only_facts(self) -> DatabasePartner:
        """Itself, as it is silent anyway where no fact is asked for."""
        return self

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _answer(self, text: str) -> str:
        entity = self.database.entity(subject_of(text))
        if entity is None:
            return ""
        values = self.database.values(entity)
        tokens = list(_TOKEN.finditer(text, max(len(text) - _RECENT, 0)))
        if asked := self._asked(tokens):
            said = Said(text)
            for attribute in asked:
                for value in values.get(attribute, ()):
                    if not self._stated(said, attribute, value, values, asked):
                        return joined(text, value)
        return self._rest(text, tokens, values)

    def _asked(self, tokens: Sequence[re.Match[str]]) -> list[str]:
        """The attributes that the text before a place asks for, given its last tokens."""
        return [
            attribute
            for attribute, _ in self.database.cue([token[0].lower() for token in tokens[-LONGEST_CUE:]])
        ]

    def _stated(
        self, said: Said, attribute: str, value: str, values: dict[str, list[str]], asked: Sequence[str]
    ) -> bool:
        """Whether the text has stated this value of this attribute, in any wording."""
        return any(self._is_of(said, span, attribute, value, values, asked) for span in said.places(value))

    def _is_of(
        self,
        said: Said,
        span: Span,
        attribute: str,
        value: str,
        values: dict[str, list[str]],
        asked: Sequence[str],
    ) -> bool:
        """Whether the value, where it stands in the text, is stated as the value of this attribute.

        It may belong to another attribute: a year inside another date, or a place of birth that is also the place of
        death. Attributes that share a cue or a word of their names count as one here. A bare number belongs to this
        attribute only if the words around it are about the attribute.
        """
        own = _name_words(attribute)
        around = {*said.words_before(span[0], LONGEST_CUE), *said.words_after(span[1], 3)}
        named = any(word[:_STEM] in (near[:_STEM] for near in around) for word in own)
        cued = self._asked(list(_TOKEN.finditer(said.text, max(span[0] - _RECENT, 0), span[0])))
        rival = False
        for other, theirs in values.items():
            related = other in (attribute, *asked) or bool(own & _name_words(other))
            for start, end in (place for one in theirs for place in said.wholes(one)):
                if (start, end) == span:
                    rival = rival or not related
                elif start <= span[0] and span[1] <= end:
                    return False  # A longer value contains this one.
        if is_number(value) and not _is_year(value):
            return named or attribute in cued
        return attribute in cued or not rival

    def _rest(self, text: str, tokens: Sequence[re.Match[str]], values: dict[str, list[str]]) -> str:
        """The rest of a value, if the text ends in the middle of one, has a cue for it before, and has not stated it
        yet."""
        for size in range(1, min(len(tokens), _LONGEST_BEGINNING) + 1):
            asked = self._asked(tokens[:-size])
            for attribute in asked:
                for value in values.get(attribute, ()):
                    parts = list(_TOKEN.finditer(value))
                    begun = [part[0] for part in parts[:size]] == [token[0] for token in tokens[-size:]]
                    if not begun or len(parts) <= size:
                        continue
                    said = Said(text[: tokens[-size].start()])
                    if not self._stated(said, attribute, value, values, asked):
                        return value[parts[size - 1].end() :]
        return ""


def _name_words(attribute: str) -> set[str]:
    """Words of an attribute's name that distinguish it from others: for "birth_date", "birth"."""
    return {word for word in folded(attribute.replace("_", " ")).split() if len(word) > 2} - _KINDS


def _is_year(value: str) -> bool:
    return value.isdecimal() and len(value) == 4


def joined(text: str, value: str) -> str:
    """The value as a continuation: with a space before it unless the text ends in one or in an opening mark."""
    return value if not text or text[-1].isspace() or text[-1] in "([{\"“‘'-–—/" else f" {value}"


PARTNERS.add(PartnerKind(
    "database", "database:FILE",
    "a SQLite table of (entity, attribute, value): the entity is the text's subject, the attribute what its end asks for",
    lambda where, opening: DatabasePartner(FactDatabase(where), opening.reach), knows_facts=True,
))  # fmt: skip
