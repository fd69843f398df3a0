"""Verdicts on atomic facts: the protocol, and the embedded judge that needs no model.

The embedded judge wants each value of a fact (name, number, date, occupation, by word stems) in one place of the
retrieved passages (two sentences in a row), and enough of the fact's other content words anywhere in them. It
knows no synonyms, no negation and no relation between value and word, so it is wrong both ways; `agreement` says
how often. Its two thresholds were chosen on the InstructGPT texts of the published annotations.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Protocol

from lacy_jax.cascade.passages import Passage, words
from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore.splitting import normal_topic, split_sentences
from lacy_jax.labels import RuleLabeller
from lacy_jax.labels.keywords import FUNCTION_WORDS

CONTENT_SHARE = 0.34
"""Share of a fact's other content words that the passages must have, beside its values."""
CONTENT_SHARE_ALONE = 0.5
"""The same of a fact that states no value."""
_LIFE = re.compile(r"\(([^()]*?\d{3,4})\s*[–-]\s*([^()]*?\d{3,4})[^()]*\)")
_SUFFIXES = ("ational", "ation", "ments", "ment", "ings", "ing", "ness", "ers", "er", "ors", "or", "ied", "ies", "ed", "es", "ly", "s", "e")  # fmt: skip
_SAY_NOTHING = frozenset("known notable best including include various several numerous also role".split())


class Judge(Protocol):
    """Decides whether facts are supported."""

    @property
    def name(self) -> str:
        """Appears beside every score."""

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool]:
        """One verdict per fact about a topic, from the passages retrieved for each.

        Raises:
          PartnerError: a model server failed; nothing is decided.
        """


class EmbeddedJudge:
    """The judge described above."""

    name = "embedded value matching"

    def __init__(self) -> None:
        self._labeller = RuleLabeller()

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool]:
        """See `Judge.supported`; never fails."""
        return [self._verdict(topic, fact, found) for fact, found in zip(facts, passages, strict=True)]

    def _verdict(self, topic: str, fact: str, passages: Sequence[Passage]) -> bool:
        own = {stem(word) for word in words(normal_topic(topic))}
        values = [rest for value in self._values(topic, fact) if (rest := value - own)]
        content = {
            stem(word)
            for word in words(fact)
            if word not in FUNCTION_WORDS and word not in _SAY_NOTHING and len(word) > 1
        }
        content = content - own - set().union(*values)
        windows = [window for passage in passages for window in _windows(topic, passage)]
        everywhere: set[str] = set().union(*windows)
        share = len(content & everywhere) / len(content) if content else 1.0
        if not values:
            return bool(content) and share >= CONTENT_SHARE_ALONE
        return share >= CONTENT_SHARE and all(any(value <= window for window in windows) for value in values)

    def _values(self, topic: str, fact: str) -> list[set[str]]:
        """The stems of each value that the fact states."""
        labels = self._labeller.label(Document("", fact, normal_topic(topic)))
        return [
            {stem(word) for word in words(fact[start:end]) if word not in FUNCTION_WORDS}
            for start, end in labels.factual
        ]


@functools.lru_cache(maxsize=1024)
def _windows(topic: str, passage: Passage) -> tuple[frozenset[str], ...]:
    """Stems of every two sentences in a row, and of what a life span in parentheses says."""
    sentences = split_sentences(passage.text)
    stems = [_stems(sentence) for sentence in sentences]
    found = [own | (stems[index - 1] if index else frozenset()) for index, own in enumerate(stems)]
    for sentence in sentences[:2]:
        for born, died in _LIFE.findall(sentence)[:1]:
            found.append(_stems(f"{topic} was born on in {born}"))
            found.append(_stems(f"{topic} died passed away death on in {died}"))
    return tuple(found)


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words(text))


def stem(word: str) -> str:
    """A word without its most usual endings; words of the same stem are taken for the same."""
    if word.isdigit() or len(word) < 4:
        return word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word
