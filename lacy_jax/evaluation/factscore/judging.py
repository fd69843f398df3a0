"""Verdicts on atomic facts: the protocol, and the embedded judge, which needs no model.

The embedded judge requires each value of a fact (name, number, date, occupation) in one place of the retrieved passages
(two consecutive sentences), and minds the relation where it can tell it: a value of a birth or a death stands where one is
spoken of, what the topic is stands where the article says what something is, a number stands beside another word of the
fact, and an age at death follows from the life span. For a fact without values it requires enough of its content words.
Words are compared by the beginning of their stems, numbers as digits. It knows no synonyms, no negation and no other
relation, so it errs in both directions; `agreement` measures how often.

What the article does not state is not supported: that is what FActScore asks for, and what comparisons of models need.
People who judge with a fuller article at hand say otherwise of a text that is mostly right. The lenient judge does as
they do: in a text of whose facts with values at least half (`TRUSTED`) are supported, it also supports what the article
neither states nor contradicts.
"""

from __future__ import annotations

import dataclasses
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
TRUSTED = 0.5
"""Share of a text's facts with values that must be supported for the lenient judge to trust its other facts."""
_WHAT = re.compile(r"\b(?:is|was|are|were)\s+(?:an?|the|one)\b")
_SHORT = re.compile(r"(?:an?|the)\s+[\w'’-]+(?:\s+[\w'’-]+){0,2}\.?")
_YEAR = re.compile(r"\d{4}")
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
    """The judge described above; `lenient` as described there."""

    def __init__(self, lenient: bool = False) -> None:
        self._lenient = lenient
        self._labeller = RuleLabeller()

    @property
    def name(self) -> str:
        """See `Judge.name`; the edition changes when the rules do, so that scores of two editions are not compared."""
        return f"embedded value matching, 3rd edition{', lenient' if self._lenient else ''}"

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool]:
        """See `Judge.supported`; never fails. The lenient verdicts on some facts of a text depend on the others."""
        found = [self._finding(topic, fact, own) for fact, own in zip(facts, passages, strict=True)]
        stated = [finding.supported for finding in found if finding.values]
        trusted = self._lenient and bool(stated) and sum(stated) >= TRUSTED * len(stated)
        return [finding.supported or (trusted and not finding.contradicted) for finding in found]

    def _finding(self, topic: str, fact: str, passages: Sequence[Passage]) -> _Finding:
        own = _stems(normal_topic(topic))
        windows = [window for passage in passages for window in _windows(topic, passage)]
        content = _content(fact) - own
        values = [rest for value in self._values(topic, fact) if (rest := value - own)]
        if not values:
            everywhere: set[str] = set().union(*(window.stems for window in windows))
            return _Finding(bool(content) and len(content & everywhere) / len(content) >= CONTENT_SHARE)
        said = _stems(fact)
        about = [event for event in _EVENTS if said & event]
        what_it_is = _says_what(topic, fact)
        windows = [
            window
            for window in windows
            if all(window.stems & event for event in about) and (window.says_what or not what_it_is)
        ]

        def states(value: frozenset[str] | set[str]) -> bool:
            beside = content - value if all(word.isdigit() for word in value) else frozenset()
            return any(value <= window.stems and (not beside or beside & window.stems) for window in windows)

        years = {word for value in values for word in value if _YEAR.fullmatch(word)}
        known = {word for window in windows for word in window.stems if _YEAR.fullmatch(word)}
        contradicted = what_it_is or (bool(about and years and known) and not years & known)
        return _Finding(all(map(states, values)), True, contradicted)

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Finding:
    """What the passages say of a fact: whether they support it, whether it states values, and whether, where they do not
    support it, they contradict it: they say what the topic is, or when it was born or died, and not this."""

    supported: bool
    values: bool = False
    contradicted: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """Stems of a place in a passage, and whether it says what something is."""

    stems: frozenset[str]
    says_what: bool = False


@functools.lru_cache(maxsize=1024)
def _windows(topic: str, passage: Passage) -> tuple[_Window, ...]:
    """Every two consecutive sentences; and the birth, the death and the age at it from a life span in parentheses."""
    sentences = split_sentences(passage.text)
    stems = [_stems(sentence) for sentence in sentences]
    what = [_WHAT.search(sentence) is not None for sentence in sentences]
    found = [
        _Window(own | (stems[at - 1] if at else frozenset()), any(what[max(at - 1, 0) : at + 1]))
        for at, own in enumerate(stems)
    ]
    for sentence in sentences[:2]:
        for born, died in _LIFE.findall(sentence)[:1]:
            found.append(_Window(_stems(f"{topic} was born on in {born}")))
            first, last = (re.findall(r"\d{3,4}", date)[-1] for date in (born, died))
            ages = f"{int(last) - int(first) - 1} {int(last) - int(first)}"
            found.append(
                _Window(_stems(f"{topic} died on in {died} at the age of aged {ages} years old when"))
            )
    return tuple(found)


def _says_what(topic: str, fact: str) -> bool:
    """Whether the fact says what the topic is, as "Ada Bell was a Norwegian chemist." does."""
    name = normal_topic(topic)
    subject, verb, rest = fact.partition(" was ") if " was " in fact else fact.partition(" is ")
    topical = subject.lower() in ("he", "she", "it") or (
        bool(subject) and set(subject.split()) <= set(name.split())
    )
    return bool(verb) and topical and _SHORT.fullmatch(rest) is not None


def kind_of_fact(topic: str, fact: str) -> str:
    """What a fact is about, for tables: "birth or death", "what the topic is", "number or date", "name", "other
    value" or "no value"."""
    labels = RuleLabeller().label(Document("", fact, normal_topic(topic)))
    own = _stems(normal_topic(topic))
    rules = [rule for (a, b), rule in zip(labels.factual, labels.reasons) if not _stems(fact[a:b]) <= own]
    if any(_stems(fact) & event for event in _EVENTS):
        return "birth or death"
    if _says_what(topic, fact):
        return "what the topic is"
    if {"number", "date"} & set(rules):
        return "number or date"
    return "name" if {"name", "title"} & set(rules) else "other value" if rules else "no value"


def _content(text: str) -> frozenset[str]:
    return frozenset(
        stem(word)
        for word in words(text)
        if word not in FUNCTION_WORDS and word not in _SAY_NOTHING and len(word) > 1
    )


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
