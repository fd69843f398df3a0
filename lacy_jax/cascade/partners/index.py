"""A dense index as partner: what the text is about to say is looked up by its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade.dense_index import DEFAULT_SEARCH, SEARCHES, DenseIndex, Found, encoder_name
from lacy_jax.cascade.encoders import ENCODERS, Encoder
from lacy_jax.cascade.entries import context_of
from lacy_jax.cascade.partners.base import (
    PARTNERS,
    Opening,
    Partner,
    PartnerKind,
    check_reach,
    cut,
    first_span,
    needs_head,
    partner_behind,
)
from lacy_jax.cascade.partners.database import joined
from lacy_jax.cascade.partners.documents import extract, prompted, share_of_title
from lacy_jax.cascade.passages import Passage
from lacy_jax.cascade.stated import Said
from lacy_jax.errors import DataError

LEAST_SIMILARITY = 0.5
"""A value is only given if the text is at least this similar to what it was kept under; unrelated texts are below 0.3. The
cosines of a query head are only trained to rank: for them it is found on held-out text (`least_similarity`)."""
COUNT = 32
"""Entries looked at per text; many are about others."""
ANYTHING = -1.0
"""The least similarity that leaves nothing out."""
_TOKEN = re.compile(r"\w+|[^\w\s]")


class IndexPartner(Partner):
    """Answers out of a `DenseIndex`. The best entry about the text's subject that has a value gives it, unless the text has
    stated it; without such an entry the next words are taken from the passages found (`documents.extract`).

    Args:
      index: the index.
      reach: "token" (a word or a mark), "word", or "span" (the whole value); with `through`, that partner's own counts.
      by: how to search, one of `SEARCHES`.
      through: a partner that gets what was found before the text; None = answer from it directly.
      count: entries looked at per text. passages: so many of them are used as passages.
      least: the least similarity of an entry whose value is given, a cosine; None = `LEAST_SIMILARITY`, for a query head what the
        index has for it, and `ANYTHING` if it has nothing.
    """

    def __init__(
        self,
        index: DenseIndex,
        reach: str = "span",
        *,
        by: str = DEFAULT_SEARCH,
        through: Partner | None = None,
        count: int = COUNT,
        passages: int = 5,
        least: float | None = None,
    ):
        self.index, self.by, self.through = index, by, through
        self.by_query = SEARCHES[by].vectors == "head"
        self.count, self.passages, self._least, self._head = count, passages, least, ""
        self.reach = check_reach(reach) if through is None else through.reach
        self.name = "index" if through is None else f"index, {through.name}"

    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """See `Partner.complete`; "" where the index has nothing to say.

        Raises:
          DataError: the index was damaged meanwhile. ConfigError: it is to be asked by a query head.
        """
        if self.by_query:
            raise needs_head(f"index:...#{self.by}")
        return self._complete(texts, None)

    def complete_by_query(
        self, texts: Sequence[str], queries: Float32[np.ndarray, "n Q"]
    ) -> Sequence[str | None]:
        """See `Partner.complete_by_query`.

        Raises:
          DataError: the index was damaged meanwhile, or has vectors of another length.
        """
        return self._complete(texts, queries if self.by_query else None)

    def asked_by(self, head: str) -> None:
        """See `Partner.asked_by`."""
        self._head = head

    def least(self) -> float:
        """The least similarity of an entry whose value is given.

        Raises:
          DataError: the index was damaged meanwhile.
        """
        if self._least is not None:
            return self._least
        if not self.by_query:
            return LEAST_SIMILARITY
        found = self.index.least_similarity(self._head, self.by)
        return ANYTHING if found is None else found

    def _complete(
        self, texts: Sequence[str], vectors: Float32[np.ndarray, "n Q"] | None
    ) -> Sequence[str | None]:
        count = self.count if self.through is None else self.passages
        found = self.index.search([context_of(text) for text in texts], count, self.by, vectors)
        if self.through is not None:
            shown = [
                prompted([_passage(one) for one in near], text)
                for near, text in zip(found, texts, strict=True)
            ]
            return self.through.complete(shown)
        least = self.least()
        return [self._answer(text, near, least) for text, near in zip(texts, found, strict=True)]

    def typical_texts(self) -> list[str]:
        """Values of the index."""
        if self.through is not None:
            return self.through.typical_texts()
        return [cut(" " + value, self.reach) for value in self.index.sample_values()]

    def used(self) -> tuple[int, float]:
        """As counted by the partner behind."""
        return (0, 0.0) if self.through is None else self.through.used()

    def close(self) -> None:
        """Close the index and the partner behind."""
        self.index.close()
        if self.through is not None:
            self.through.close()

    def _answer(self, text: str, found: Sequence[Found], least: float) -> str:
        if value := value_for(text, found, least):
            return cut(value, self.reach)
        passages = [_passage(one) for one in found if not one.entry.value][: self.passages]
        continuation = extract(passages, text, inside_words=self.reach == "token") if passages else ""
        return first_span(continuation) if self.reach == "span" else cut(continuation, self.reach)


def value_for(text: str, found: Sequence[Found], least: float = LEAST_SIMILARITY) -> str:
    """The value that the best of the entries states of the text's subject, as a continuation, or the rest of it if the text
    has begun it; "" if there is none, or if the text has stated it.

    Several values of one attribute are given in turn. Entries that are less similar than `least` are left out.
    """
    known = [one.entry for one in about_subject(text, found) if one.similarity >= least]
    same = [
        e
        for e in known
        if e == known[0] or (e.attribute and e.title == known[0].title and e.attribute == known[0].attribute)
    ]
    said = Said(text)
    for entry in same:
        if rest := _rest(text, entry.value):
            return rest
        if not said.places(entry.value):
            return joined(text, entry.value)
    return ""


def about_subject(text: str, found: Iterable[Found]) -> list[Found]:
    """Those of the entries that have a value and are about the text's subject, or do not say about whom they are."""
    return [
        one
        for one in found
        if one.entry.value and (not one.entry.title or share_of_title(one.entry.title, text) >= 0.5)
    ]


def _rest(text: str, value: str) -> str:
    """What is left of a value whose first words the text ends with; "" if it does not, or if nothing is left."""
    parts = list(_TOKEN.finditer(value))
    last = [match[0] for match in _TOKEN.finditer(text[-2 * len(value) - 40 :])]
    for size in range(len(parts) - 1, 0, -1):
        if [part[0] for part in parts[:size]] == last[-size:]:
            return value[parts[size - 1].end() :]
    return ""


def _passage(found: Found) -> Passage:
    entry = found.entry
    if not entry.value:
        return Passage(entry.title, entry.context)
    return Passage(entry.title, f"{entry.attribute.replace('_', ' ') or entry.context} {entry.value}")


def open_encoder(folder: str) -> Encoder:
    """The encoder that an index was built with.

    Raises:
      DataError: the index is missing or damaged, or its encoder is not known here. LacyError: a package is missing.
    """
    name = encoder_name(folder)
    if name not in ENCODERS:
        raise DataError(f"index {folder}: built with encoder {name!r}; known are {', '.join(ENCODERS)}")
    return ENCODERS[name].open()


def _open(where: str, opening: Opening) -> IndexPartner:
    path, through = partner_behind(where, opening)
    folder, mark, how = path.partition("#")
    by, at, number = how.partition("@")
    if mark and by not in SEARCHES:
        raise opening.refuse(f"after # expected one of {', '.join(SEARCHES)}")
    least = _cosine(number) if at else None
    if at and least is None:
        raise opening.refuse(f"after @ expected the least similarity, a number from -1 to 1, got {number!r}")
    return IndexPartner(
        DenseIndex(folder, open_encoder(folder)),
        opening.reach,
        by=by or DEFAULT_SEARCH,
        through=through,
        least=least,
    )


def _cosine(text: str) -> float | None:
    try:
        return value if -1.0 <= (value := float(text)) <= 1.0 else None
    except ValueError:
        return None


PARTNERS.add(PartnerKind(
    "index", "index:FOLDER[#SEARCH[@LEAST]][,PARTNER]",
    "an index made by `lacy index`: by meaning, by words (#words), both (#hybrid, #dense_of_words), or by the run's query head (#head, #head_hybrid, #head_of_words), with the least similarity of a value; answers are values or taken from passages, or PARTNER is shown them",
    _open,
))  # fmt: skip
