"""A fact database as partner: it knows values, not language."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from lacy_jax.cascade.fact_database import LONGEST_CUE, FactDatabase
from lacy_jax.cascade.partners.base import CONNECTORS, PARTNERS, Partner, PartnerKind, check_reach, cut

_TOKEN = re.compile(r"\w+|[^\w\s]")
_NAME = re.compile(r"[^\W\d_][\w.'’-]*(?:\s+[^\W\d_][\w.'’-]*)*")
_LONGEST_SUBJECT = 120
_LONGEST_BEGINNING = 6
"""Words of a value that may have been written before the rest of it is asked for."""


def subject_of(text: str) -> str:
    """The name a text begins with: its first words, up to a mark or a word in lower case."""
    match = _NAME.match(text[:_LONGEST_SUBJECT].lstrip('"“( '))
    name: list[str] = []
    for word in match[0].split() if match else []:
        if word.islower() and word not in CONNECTORS:
            break
        name.append(word)
    return " ".join(name)


class DatabasePartner(Partner):
    """The value that a text is about to state, or the rest of one it has begun; "" where it asks for none.

    The entity is the text's subject (its first name, matched fuzzily), the attribute the one whose cue the
    text ends with. A value that the text has stated already is not stated again.

    Args:
      database: the facts.
      reach: "token" (a word or a mark), "word", or "span" (the whole value).
    """

    name = "database"

    def __init__(self, database: FactDatabase, reach: str = "span"):
        self.database, self.reach = database, check_reach(reach)
        self._entity = functools.lru_cache(maxsize=4096)(database.entity)

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; never fails."""
        return [cut(self._answer(text), self.reach) for text in texts]

    def typical_texts(self) -> list[str]:
        """Values of the database."""
        return [cut(" " + value, self.reach) for value in self.database.sample_values()]

    def only_facts(self) -> DatabasePartner:
        """Itself: it is silent where no fact is asked for."""
        return self

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _answer(self, text: str) -> str:
        entity = self._entity(subject_of(text))
        if entity is None:
            return ""
        values = self.database.values(entity)
        tokens = [match[0] for match in _TOKEN.finditer(text[-300:])]
        asked = dict(self.database.cue([token.lower() for token in tokens[-LONGEST_CUE:]]))
        for attribute in asked:
            for value in values.get(attribute, ()):
                if value not in text:
                    return joined(text, value)
        return self._rest(text, tokens, values)

    def _rest(self, text: str, tokens: list[str], values: dict[str, list[str]]) -> str:
        """The rest of a value that the text ends in the middle of, if a cue for it stands before."""
        for size in range(1, min(len(tokens), _LONGEST_BEGINNING) + 1):
            before = [token.lower() for token in tokens[-size - LONGEST_CUE : -size]]
            for attribute, _ in self.database.cue(before):
                for value in values.get(attribute, ()):
                    parts = list(_TOKEN.finditer(value))
                    if len(parts) > size and [part[0] for part in parts[:size]] == tokens[-size:]:
                        return value[parts[size - 1].end() :]
        return ""


def joined(text: str, value: str) -> str:
    """The value as a continuation: with a space before it unless the text ends in one or in an opening mark."""
    return value if not text or text[-1].isspace() or text[-1] in "([{\"“‘'-–—/" else f" {value}"


PARTNERS.add(PartnerKind(
    "database", "database:FILE",
    "a SQLite table of (entity, attribute, value): the entity is the text's subject, the attribute what its end asks for",
    lambda where, opening: DatabasePartner(FactDatabase(where), opening.reach), knows_facts=True,
))  # fmt: skip
