"""Atomic facts without a model server: sentences, clauses, and one fact per stated value.

The labeller's rules say which characters state something (`labels.rules`). A clause that states several values
("born on 18 December 1949 in Pensacola") gives one fact for each: the text before the values, the preposition before
the value, and the value. Pronouns and names at the start of a clause are replaced by the topic. Parentheses and
appositions between the subject and "is" or "was" are clauses of their own ("X (born Y; 1895 – 1970), of Z, was ..."); in
other places what stands in parentheses belongs to the value before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from lacy_jax.clients import NoAnswer
from lacy_jax.corpus import Document
from lacy_jax.evaluation.factscore.formats import AtomicFact
from lacy_jax.labels import RuleLabeller
from lacy_jax.labels.keywords import FINITE_VERBS, FUNCTION_WORDS, MONTHS
from lacy_jax.labels.layout import ends_with_abbreviation
from lacy_jax.labels.mentions import normalise

_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"”’)\]]))\s+(?=[\"“(]?[A-Z0-9])|\n+")
_VERBS = "|".join([*FINITE_VERBS, "also|later|then|[a-z]+ed"])
_CLAUSE = re.compile(
    rf"\s*;\s+|,?\s+(?:and|but)\s+(?=(?:he|she|they|it|{_VERBS})\b)"
    r"|,\s+(?:where|when|while)\s+(?=(?:he|she|they)\b)|,?\s+(?=born\b)"
)
_WHO = re.compile(r",?\s+who\s+")
_PARENTHESES = re.compile(r"\s*\(((?:[^()]|\([^()]*\))*)\)")
_SHORT = rf"(?!(?:{'|'.join(FINITE_VERBS)})\b)[a-z]{{1,3}}"
_NAME = rf"(?:[^\W\d_a-zß-öø-ÿ][\w'’.-]*|[\"“][^\"“”]*[\"”]|\d+(?:st|nd|rd|th)|['‘]\w+['’]|[a-z]{{1,3}}['’-]\w[\w'’-]*|{_SHORT}\b)"
_LEAD = re.compile(
    rf"(?P<name>{_NAME}(?:,?\s+{_NAME}){{0,12}}?)"
    r"(?:(?:\s*,\s+|\s+(?=also\b))(?P<more>[^;]{0,300}?))?\s*,?\s+(?P<verb>is|was|are|were)\b"
)
"""A name, what stands in apposition to it, and the verb of its sentence."""
_DASH = r"\s*(?:[–—]|\s-|(?<=\d)-)\s*"
_LIFE = re.compile(rf"(?P<born>[^–—]*?\d.*?){_DASH}(?P<died>.*\d.*)", re.DOTALL)
_BORN = re.compile(r"\b(?:born|b\.):?\s*")
_DIED = re.compile(r"\b(?:died|d\.):?\s*")
_NAMED = re.compile(
    r"(?:(?:also|better|best|formerly|originally|sometimes) )?(?:known|called|nicknamed|named|n[ée]e?)\b"
)
_MONTH = "|".join(map(str.capitalize, MONTHS))
_ON = re.compile(rf"\d{{1,2}} (?:{_MONTH})\b|(?:{_MONTH}) \d{{1,2}}\b")
_IN = re.compile(rf"\d{{3,4}}\b|(?:{_MONTH})\b")
_CIRCA = re.compile(r"^(?:c(?:a|irca)?\b\.?|about)\s*")
_PRONOUN = re.compile(r"(?:(?P<own>his|her|their|its)|he|she|they|it)\b\s*", re.IGNORECASE)
_OPENING = re.compile(r"(?:in|on|after|before|during|since|as|at|from|by)\b[^,]{1,60},\s+", re.IGNORECASE)
_PREPOSITION = re.compile(
    r"(?:\b(?:in|on|at|from|to|of|for|with|by|as|during|until|since|between|near|alongside|against|the|a|an)\b\s*)+$"
)
_ARTICLES = frozenset(["the", "a", "an"])
_AND = re.compile(r"^(?:and|or|but)\s+")
_ARTICLE = re.compile(r"\ban?(?=\s*$)")
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
    """Sentences by their final punctuation; initials, common abbreviations and parentheses do not end a sentence."""
    parts: list[list[str]] = []
    open_ones = 0
    for part in _SENTENCE_END.split(text):
        part = part.strip()
        if not part:
            continue
        if parts and (ends_with_abbreviation(parts[-1][-1]) or (open_ones > 0 and ")" in part)):
            parts[-1].append(part)
        else:
            parts.append([part])
            open_ones = 0
        open_ones += part.count("(") - part.count(")")
    return list(map(" ".join, parts))


class ClauseSplitter(Splitter):
    """The embedded splitter; see the module's docstring."""

    name = "clauses, 2nd edition"
    """The edition changes when the rules do, so that scores of different editions are not compared."""

    def __init__(self) -> None:
        self._labeller = RuleLabeller()

    def split(self, topic: str, text: str) -> list[tuple[str, list[AtomicFact]]]:
        """See `Splitter.split`."""
        found = []
        for sentence in split_sentences(text):
            clauses = _clauses(normal_topic(topic), sentence)
            facts = [fact for clause in clauses for fact in self._facts(topic, clause)]
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
            facts.append(
                " ".join(f"{lead} {_ARTICLE.sub(_article(value), preposition)}{value}".split()) + "."
            )
        return facts

    def _values(self, topic: str, clause: str) -> list[tuple[int, int]]:
        """Stated values in the clause; "Pensacola, Florida" is one value, and the topic's own name is none."""
        own = set(re.findall(r"\w+", topic.lower()))
        labels = self._labeller.label(Document("", clause, topic))
        merged: list[tuple[int, int]] = []
        after_is_a, last = False, ""
        for (start, end), rule in zip(labels.factual, labels.reasons, strict=True):
            if set(re.findall(r"\w+", clause[start:end].lower())) <= own or (merged and end <= merged[-1][1]):
                continue
            start, end = _whole_words(clause, start, end)
            inside = next((p for p in _PARENTHESES.finditer(clause) if p.start() < start < p.end()), None)
            if inside:
                merged[-1:] = [(merged[-1][0] if merged else inside.start(), inside.end())]
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
            # "the 1938 British Empire Games", "film director"
            one = gap == " " and (
                clause[merged[-1][0]].isdigit() if rule == "name" else _VALUES.isdisjoint((rule, last))
            )
            if one or (rule == "name" and in_place and gap == ", "):
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
            last = rule
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
    return f"{_AND.sub('', middle.strip(' ,()“”' + chr(34)))} {own}".strip() + " "


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


def _whole_words(clause: str, start: int, end: int) -> tuple[int, int]:
    """The span with the rest of its hyphenated words: "19th-century", "30-year"."""
    before = re.search(r"(?:[^\W\d][\w’']*[-–])+$", clause[:start])
    after = re.match(r"(?:[-–][^\W\d][\w’']*)+", clause[end:])
    return before.start() if before else start, end + (after.end() if after else 0)


def _article(value: str) -> str:
    return "an" if value[:1] in "AEIOaeio" else "a"


def _clauses(topic: str, sentence: str) -> list[str]:
    """Clauses, each of which can stand alone once it has a subject."""
    sentence = _without_stray(sentence)
    found: list[str] = []
    lead = _LEAD.match(_hidden(sentence, " "))
    if lead and (_names(lead["name"], topic) or topic in (lead["more"] or "")):
        verb = lead.start("verb")
        for inside in _PARENTHESES.finditer(sentence, 0, verb):
            found += _of_subject(topic, inside[1])
        more = " ".join((lead["more"] or "").split()).strip(" ,")
        found += [f"{topic} was {more}"] if more and more not in topic else []
        sentence = f"{topic} {sentence[verb:]}"
    sentence = _WHO.sub("; he ", sentence)
    begun = 0
    for match in _CLAUSE.finditer(_hidden(sentence, "_")):
        found.append(sentence[begun : match.start()])
        begun = match.end()
    return [part for part in [*found, sentence[begun:]] if part.strip()]


def _hidden(sentence: str, letter: str) -> str:
    """The sentence with its parentheses overwritten, so that a pattern does not look into them; nothing moves."""
    return _PARENTHESES.sub(lambda match: letter * len(match[0]), sentence)


def _without_stray(sentence: str) -> str:
    """The sentence without brackets that nothing opens or closes."""
    kept = set()
    for match in _PARENTHESES.finditer(sentence):
        kept |= {match.start() + at for at, letter in enumerate(match[0]) if letter in "()"}
    return "".join(letter for at, letter in enumerate(sentence) if letter not in "()" or at in kept)


def _names(name: str, topic: str) -> bool:
    """Whether a sentence's subject is the topic, also under its full or short name."""
    own, said = normalise(topic), normalise(name)
    return bool(own) and not name.endswith(("'s", "’s")) and (own[0] in said or own[-1] in said)


def _of_subject(topic: str, inside: str) -> list[str]:
    """What parentheses behind a person's name say: birth, death and other names; pronunciations and scripts are left out."""
    found = []
    for part in inside.split(";"):
        part = part.strip(" ,:.'\"“”")
        life = _LIFE.fullmatch(part)
        if life or (_BORN.search(part) and _DIED.search(part)):
            born, died = (life["born"], life["died"]) if life else _DIED.split(part, maxsplit=1)
            found.append(f"{topic} was born {_when(_BORN.split(born)[-1])}")
            found.append(f"{topic} died {_when(_DIED.split(died)[-1])}")
        elif _BORN.search(part):
            found.append(f"{topic} was born {_when(_BORN.split(part, maxsplit=1)[1])}")
        elif _DIED.search(part):
            found.append(f"{topic} died {_when(_DIED.split(part, maxsplit=1)[1])}")
        elif _NAMED.match(part.replace('"', "")):
            found.append(f"{topic} was {part.replace(chr(34), '')}")
    return found


def _when(date: str) -> str:
    """A date with its preposition; anything else as it is."""
    date = _CIRCA.sub("", date.strip().strip(" ,.:"))
    return f"on {date}" if _ON.match(date) else f"in {date}" if _IN.match(date) else date


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
