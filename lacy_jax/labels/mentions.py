"""Which mention of an entity is its first in a document.

Only a first mention states something: a repeat can be copied from the context (arXiv:2602.12005 §3, "occurrence
tracking"). Mentions are compared by normalised words, so that case, possessives, diacritics and articles do not
matter. Consecutive words of an earlier mention ("Hayden" after "Jay Hayden"), or its first and last word ("Jay
Hayden" after "Jay Michael Hayden"), are a repeat of it; "New York University" after "New York" is not.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from lacy_jax.labels.layout import given, subject_end
from lacy_jax.labels.spans import Labels, Span

_LONGEST = 12
"""Longest mention, in words, that gets aliases; anything longer is a quotation."""
_WORDS = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s?\b")
_DROPPED = frozenset(["the", "a", "an", "of", "in", "on", "at", "and", "for", "to", "by", "from"])


@functools.lru_cache(maxsize=100_000)
def normalise(surface: str) -> tuple[str, ...]:
    """Words of a mention without case, diacritics, possessive endings, articles and prepositions."""
    plain = surface
    if not surface.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", surface) if not unicodedata.combining(c))
    words = _WORDS.findall(_POSSESSIVE.sub(" ", plain).casefold())
    return tuple(word for word in words if word not in _DROPPED) or tuple(words)


class Mentions:
    """The mentions of one document so far."""

    def __init__(self, *known: str):
        """`known`: mentions assumed before the text begins, such as the document's title."""
        self._known: set[tuple[str, ...]] = set()  # Mentions and their aliases.
        self._whole: set[tuple[str, ...]] = set()  # Mentions without aliases.
        for surface in known:
            self.is_first(surface)

    def is_first(self, surface: str) -> bool:
        """Whether `surface` mentions something new; it is remembered.

        A sequence of earlier mentions is also a repeat ("Jay Hayden" after "Jay" and "Hayden"), unless it contains a
        number: "7 March" after "7 June" and "March 2018" is another date.
        """
        words = normalise(surface)
        if not words or words in self._known:
            return False
        first = _numeric(words) or not self._joined(words)
        self._known.add(words)
        self._whole.add(words)
        self._known.update(_aliases(words))
        return first

    def _joined(self, words: tuple[str, ...]) -> bool:
        """Whether the words are known mentions end to end; single words of longer mentions do not count."""
        if len(words) > _LONGEST:
            return False
        reached = [True] + [False] * len(words)
        for end in range(1, len(words) + 1):
            parts = (words[start:end] for start in range(end) if reached[start])
            reached[end] = any(part in self._whole for part in parts)
        return reached[-1]


def first_mentions(text: str, title: str, candidates: Iterable[tuple[int, int, str]]) -> Labels:
    """The candidates that are first mentions become factual, the others repeats.

    Args:
      title: the document's subject, which counts as mentioned before; "" if unknown.
      candidates: (start, end, rule) in text order.
    """
    mentions = Mentions(*given(title))
    begin = subject_end(text, title)
    factual: list[Span] = []
    reasons: list[str] = []
    repeats: list[Span] = []
    for start, end, reason in candidates:
        if end > begin and mentions.is_first(text[start:end]):
            factual.append((start, end))
            reasons.append(reason)
        else:
            repeats.append((start, end))
    return Labels(tuple(factual), reasons=tuple(reasons), repeats=tuple(repeats))


def _aliases(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Short forms of a mention: consecutive words without numbers, or its first and last word."""
    if len(words) > _LONGEST:
        return
    for start, end in itertools.combinations(range(len(words) + 1), 2):
        if not _numeric(words[start:end]):
            yield words[start:end]
    if not _numeric(words):
        yield words[0], words[-1]


def _numeric(words: tuple[str, ...]) -> bool:
    return any(word[0].isdigit() for word in words)
