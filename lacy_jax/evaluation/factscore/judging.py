"""Verdicts on atomic facts: the protocol, and the embedded judge, which needs no model.

The embedded judge requires each value of a fact (name, number, date, occupation) in one place of the retrieved passages
(two consecutive sentences), and the values of a birth or a death where one is mentioned; for a fact without values it
requires enough of its content words. Words are compared by the beginning of their stems, numbers as digits. It knows no
synonyms, no negation and no other relation between value and word, so it errs in both directions; `agreement` measures
how often. The rules were chosen on the InstructGPT texts of the published annotations, leaving out one person at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Protocol

from lacy_jax.cascade.passages import Passage, words
from lacy_jax.clients import NoAnswer
from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore.splitting import normal_topic, split_sentences
from lacy_jax.labels import RuleLabeller
from lacy_jax.labels.keywords import FUNCTION_WORDS

CONTENT_SHARE = 0.5
"""Share of the content words of a fact without values that the passages must contain."""
STEM_LETTERS = 6
"""Stems are equal if their first letters are: "direct" and "director", "Brazil" and "Brazilian"."""
_LIFE = re.compile(r"\(([^()]*?\d{3,4})\s*[–-]\s*([^()]*?\d{3,4})[^()]*\)")
_SUFFIXES = ("ational", "ation", "ments", "ment", "ings", "ing", "ness", "ers", "er", "ors", "or", "ied", "ies", "ed", "es", "ly", "s", "e")  # fmt: skip
_NUMBERS = {
    word: str(n)
    for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_NUMBERS |= {"first": "1", "second": "2", "third": "3", "fourth": "4", "fifth": "5"}
_FIGURE = re.compile(r"(\d+)(?:st|nd|rd|th|s)?")
_SAY_NOTHING = frozenset("known notable best including include various several numerous also role".split())


class Judge(Protocol):
    """Decides whether facts are supported."""

    @property
    def name(self) -> str:
        """The name shown beside every score."""

    @property
    def identity(self) -> str:
        """Everything that its verdicts depend on; stored verdicts of another identity are not reused."""
        return self.name

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> Sequence[bool | NoAnswer]:
        """A verdict, or why there is none, on each fact about a topic, from the passages retrieved for the fact.

        Raises:
          PartnerError: a model server failed; there are no verdicts.
        """


class EmbeddedJudge(Judge):
    """The judge described above."""

    name = "embedded value matching, 2nd edition"
    """The edition changes when the rules do, so that scores of different editions are not compared."""

    def __init__(self) -> None:
        self._labeller = RuleLabeller()

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool]:
        """See `Judge.supported`; never fails."""
        return [self._verdict(topic, fact, found) for fact, found in zip(facts, passages, strict=True)]

    def _verdict(self, topic: str, fact: str, passages: Sequence[Passage]) -> bool:
        own = _stems(normal_topic(topic))
        windows = [window for passage in passages for window in _windows(topic, passage)]
        if values := [rest for value in self._values(topic, fact) if (rest := value - own)]:
            said = _stems(fact)
            for event in _EVENTS:
                if said & event:
                    windows = [window for window in windows if window & event]
            return all(any(value <= window for window in windows) for value in values)
        content = {
            stem(word)
            for word in words(fact)
            if word not in FUNCTION_WORDS and word not in _SAY_NOTHING and len(word) > 1
        } - own
        everywhere: set[str] = set().union(*windows)
        return bool(content) and len(content & everywhere) / len(content) >= CONTENT_SHARE

    def _values(self, topic: str, fact: str) -> list[set[str]]:
        """The stems of each value that the fact states."""
        labels = self._labeller.label(Document("", fact, normal_topic(topic)))
        return [
            {
                stem(word)
                for word in words(fact[start:end])
                if word not in FUNCTION_WORDS and (len(word) > 1 or word.isdigit())
            }
            for start, end in labels.factual
        ]


@functools.lru_cache(maxsize=1024)
def _windows(topic: str, passage: Passage) -> tuple[frozenset[str], ...]:
    """Stems of every two consecutive sentences, and of the birth and death in a life span in parentheses."""
    sentences = split_sentences(passage.text)
    stems = [_stems(sentence) for sentence in sentences]
    found = [own | (stems[index - 1] if index else frozenset()) for index, own in enumerate(stems)]
    for sentence in sentences[:2]:
        for born, died in _LIFE.findall(sentence)[:1]:
            found.append(_stems(f"{topic} was born on in {born}"))
            found.append(_stems(f"{topic} died on in {died}"))
    return tuple(found)


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words(text))


def stem(word: str) -> str:
    """A number in digits; for a word, the first letters of what remains without its usual endings."""
    word = _NUMBERS.get(word, word)
    if figure := _FIGURE.fullmatch(word):
        return figure[1]
    for suffix in _SUFFIXES if len(word) > 3 else ():
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)][:STEM_LETTERS]
    return word[:STEM_LETTERS]


_EVENTS = (
    _stems("born birth birthplace native"),
    _stems("died die dies death killed murdered assassinated passed"),
)
"""Words about births and deaths: a date or place of one is not that of the other."""
