"""Atomic facts without a model server: sentences, clauses, and one fact per stated value.

The labeller's rules say which characters state something (`labels.rules`). A clause that states several values
("born on 18 December 1949 in Pensacola") gives one fact for each: the text before the values, the preposition before
the value, and the value. Pronouns and short names at the start of a clause are replaced by the topic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from lacy_jax.clients import NoAnswer
from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore.formats import AtomicFact
from lacy_jax.labels import RuleLabeller
from lacy_jax.labels.keywords import FINITE_VERBS, FUNCTION_WORDS
from lacy_jax.labels.layout import ends_with_abbreviation

_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"”’)\]]))\s+(?=[\"“(]?[A-Z0-9])|\n+")
_VERBS = "|".join([*FINITE_VERBS, "also|later|then|[a-z]+ed"])
_CLAUSE = re.compile(
    rf"\s*;\s+|,?\s+(?:and|but)\s+(?=(?:he|she|they|it|{_VERBS})\b)"
    r"|,?\s+who\s+|,\s+(?:where|when|while)\s+(?=(?:he|she|they)\b)|,?\s+(?=born\b)"
)
_PRONOUN = re.compile(r"(?:(?P<own>his|her|their|its)|he|she|they|it)\b\s*", re.IGNORECASE)
_OPENING = re.compile(r"(?:in|on|after|before|during|since|as|at|from|by)\b[^,]{1,60},\s+", re.IGNORECASE)
_PREPOSITION = re.compile(
    r"(?:\b(?:in|on|at|from|to|of|for|with|by|as|during|until|since|between|near|alongside|against|the|a|an)\b\s*)+$"
)
_ARTICLES = frozenset(["the", "a", "an"])
_JOINT = re.compile(r"[\s,\"“”]*(?:(?:and|or|&)\b)?[\s,\"“”]*(?:(?:the|an?)\b)?[\s\"“”]*")
_VERB = re.compile(rf"(?:{_VERBS})\b")
_IS_A = re.compile(r"\b(?:is|was|became|as)\s+(?:an?\s+|the\s+)?$")
_YEAR = re.compile(r"\d{3,4}s?|\d{1,2}")
_COUNTED = re.compile(r"(?:\s+[a-z]+){1,3}")
_VALUES = frozenset(["name", "number", "date", "title"])
"""Rules of the labeller whose spans always are values; spans of keyword rules are values only after "is a"."""


class Splitter(Protocol):
    """Splits a text into atomic facts."""

    @property
    def name(self) -> str:
        """The name shown beside every score."""

    @property
    def identity(self) -> str:
        """Everything that its facts depend on; stored facts of another identity are not reused."""
        return self.name

    def split(self, topic: str, text: str) -> Sequence[tuple[str, list[AtomicFact] | NoAnswer]]:
        """(sentence, its facts or why they are unknown) in text order; a text without facts means that the system abstained.

        Raises:
          PartnerError: a model server failed.
        """


def split_sentences(text: str) -> list[str]:
    """Sentences by their final punctuation; initials and common abbreviations do not end a sentence."""
    parts: list[list[str]] = []
    for part in _SENTENCE_END.split(text):
        part = part.strip()
        if not part:
            continue
        if parts and ends_with_abbreviation(parts[-1][-1]):
            parts[-1].append(part)
        else:
            parts.append([part])
    return list(map(" ".join, parts))


class ClauseSplitter(Splitter):
    """The embedded splitter; see the module's docstring."""

    name = "clauses"

    def __init__(self) -> None:
        self._labeller = RuleLabeller()

    def split(self, topic: str, text: str) -> list[tuple[str, list[AtomicFact]]]:
        """See `Splitter.split`."""
        found = []
        for sentence in split_sentences(text):
            facts = [fact for clause in _clauses(sentence) for fact in self._facts(topic, clause)]
            found.append((sentence, [AtomicFact(fact) for fact in dict.fromkeys(facts)]))
        return found

    def _facts(self, topic: str, clause: str) -> list[str]:
        clause = _about(normal_topic(topic), clause.strip().rstrip(".!?;,").strip())
        if len(set(clause.split()) - set(topic.split())) < 2:
            return []  # "X was": the rest of "who was born", or not a sentence at all.
        spans = self._values(topic, clause)
        if not spans:
            return [f"{clause}."]
        lead = clause[: spans[0][0]]
        preposition = _preposition(lead)
        lead = lead[: len(lead) - len(preposition)].rstrip(' ,("“')
        facts = []
        for index, (start, end) in enumerate(spans):
            if index:
                preposition = _link(clause[spans[index - 1][1] : start], preposition)
            value = clause[start:end].strip(' ,"“”').rstrip(".")
            facts.append(" ".join(f"{lead} {preposition}{value}".split()) + ".")
        return facts

    def _values(self, topic: str, clause: str) -> list[tuple[int, int]]:
        """Stated values in the clause; "Pensacola, Florida" is one value, and the topic's own name is none."""
        own = set(re.findall(r"\w+", topic.lower()))
        labels = self._labeller.label(Document("", clause, topic))
        merged: list[tuple[int, int]] = []
        after_is_a = False
        for (start, end), rule in zip(labels.factual, labels.reasons, strict=True):
            if set(re.findall(r"\w+", clause[start:end].lower())) <= own:
                continue
            gap = clause[merged[-1][1] : start] if merged else ""
            joined = bool(merged) and _JOINT.fullmatch(gap) is not None
            after_is_a = _IS_A.search(clause[:start]) is not None or (after_is_a and joined)
            if rule not in _VALUES and not after_is_a:
                continue
            if rule == "number" and not _YEAR.fullmatch(clause[start:end]):
                end = _counted(clause, end)
            in_place = merged and _preposition(clause[: merged[-1][0]]).split()[:1] in (
                ["in"],
                ["at"],
                ["near"],
            )
            if in_place and gap == ", " and rule == "name":
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return merged


class GivenFacts(Splitter):
    """Uses the facts in the annotations of a text; a text without annotations has none."""

    name = "facts as given"

    def split(self, topic: str, text: str) -> list[tuple[str, list[AtomicFact]]]:
        """See `Splitter.split`; only called for texts without annotations."""
        return []


def normal_topic(topic: str) -> str:
    """The topic as a text names it, without the disambiguation in parentheses."""
    return re.sub(r"\s*\([^)]*\)\s*$", "", topic).strip()


def _link(between: str, before: str) -> str:
    """The words before a value, given the text since the previous value and the words before that one."""
    own = _preposition(between)
    middle = between[: len(between) - len(own)]
    if _JOINT.fullmatch(middle):
        # "at A and the B": the preposition of the previous value applies.
        return before if set(own.split()) <= _ARTICLES else own
    return f"{middle.strip(' ,()“”' + chr(34))} {own}".strip() + " "


def _counted(clause: str, end: int) -> int:
    """The end of what a number counts: the lower-case words after it, up to a function word."""
    match = _COUNTED.match(clause, end)
    for word in match[0].split() if match else []:
        if word in FUNCTION_WORDS:
            break
        end = clause.index(word, end) + len(word)
    return end


def _preposition(text: str) -> str:
    """The prepositions and articles that `text` ends with, as written."""
    match = _PREPOSITION.search(text)
    return match[0] if match else ""


def _clauses(sentence: str) -> Sequence[str]:
    """Clauses, each of which can stand alone once it has a subject."""
    return [part for part in _CLAUSE.split(sentence) if part and part.strip()]


def _about(topic: str, clause: str) -> str:
    """The clause with the topic as its subject, instead of a pronoun, a part of its name or nothing."""
    opening = _OPENING.match(clause)
    before = opening[0].rstrip(", ") if opening else ""
    rest = clause[opening.end() :] if opening else clause
    pronoun = _PRONOUN.match(rest)
    parts = rest.split()
    name = topic.split()
    if pronoun:
        rest = f"{topic}'s {rest[pronoun.end() :]}" if pronoun["own"] else f"{topic} {rest[pronoun.end() :]}"
    elif rest.startswith("born "):
        rest = f"{topic} was {rest}"
    elif _VERB.match(rest):
        rest = f"{topic} {rest}"
    elif parts and parts[0] != name[0] and parts[0].removesuffix("'s") in name:
        rest = rest.replace(parts[0].removesuffix("'s"), topic, 1)
    return f"{rest} {before[0].lower() + before[1:]}" if before else rest
