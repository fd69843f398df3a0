"""From sentence templates to text and back: rendering, finding the open slot, reading statements.

A template (notation in templates.py) becomes a tuple of elements; each element renders to text and matches
text. Matching is tolerant because the text comes from a model: a free place matches any word, the subject may be any
name, and a slot matches whatever stands between the words around it, right or wrong. Patterns are compiled once, when
the module is imported.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from lacy_jax.corpus import pools, templates

PRONOUNS = {
    "he": {"S": "He", "P": "His", "was": "was", "s": "he", "O": "him", "p": "his", "ps": "was"},
    "she": {"S": "She", "P": "Her", "was": "was", "s": "she", "O": "her", "p": "her", "ps": "was"},
    "they": {"S": "They", "P": "Their", "was": "were", "s": "they", "O": "them", "p": "their", "ps": "were"},
}
"""The text of each reference of the notation, for a person with that pronoun."""

_CAPITALISED = r"[A-Z][A-Za-z'-]*"
_REFERENCE_PATTERNS = {
    "N": rf"{_CAPITALISED}(?: {_CAPITALISED}){{0,3}}",
    "S": rf"{_CAPITALISED}(?: {_CAPITALISED}){{0,3}}",
    "P": rf"(?:His|Her|Their|{_CAPITALISED}(?: {_CAPITALISED}){{0,3}}'s)",
    "s": "(?:he|she|they)",
    "O": "(?:him|her|them)",
    "p": "(?:his|her|their)",
    "was": "(?:was|were)",
    "ps": "(?:was|were)",
}
_FREE_PATTERN = r"[A-Za-z][A-Za-z'-]{2,}"  # Longer than "to" or "in": those belong to other sentences.
_SLOT_PATTERN = r"[^.,;\s][^.,;]{0,79}?"
_NOTATION = re.compile(r"( ?)(?:\{(\w+)\}|<(\w+)>)")
_FREE_LOWER = {name: frozenset(map(str.lower, words)) for name, words in pools.FREE_WORDS.items()}
_FREE_SORTED = {name: sorted(words) for name, words in pools.FREE_WORDS.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """One part of a template.

    Attributes:
      kind: literal, reference, free or slot.
      name: the words of a literal; otherwise the name in the notation.
      lead: "" or the space before it.
    """

    kind: str
    name: str
    lead: str = ""

    @property
    def pattern(self) -> str:
        """A regular expression for the element without its leading space."""
        if self.kind == "literal":
            return re.escape(self.name)
        if self.kind == "reference":
            return _REFERENCE_PATTERNS[self.name]
        return _FREE_PATTERN if self.kind == "free" else _SLOT_PATTERN

    @property
    def beginning(self) -> str:
        """A regular expression for the part of the element that is written when a text breaks off, which may be ""."""
        if self.kind == "literal":
            return "|".join(re.escape(self.name[:n]) for n in range(len(self.name) - 1, -1, -1))
        if self.kind == "slot":
            return f"(?:{self.lead}[^.,;]*)?"
        return f"(?:{self.lead}[A-Za-z'-]*)?"


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A compiled sentence template.

    Attributes:
      source: the template as written in templates.py.
      elements: its parts, in order.
      slots: the attributes it states, in order.
      whole: matches the whole sentence; group i holds the value of slot i.
      anchors: for each element, and for the end, the longest literal before it: a quick test before a match.
      breaks: for each element, the pattern of a sentence that breaks off in it; group "rest" is the written part.
    """

    source: str
    elements: tuple[Element, ...]
    slots: tuple[str, ...]
    whole: re.Pattern[str]
    anchors: tuple[str, ...]
    breaks: tuple[re.Pattern[str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """One attribute value that a text states.

    Attributes:
      start, end: character offsets of the stated value.
      subject: full name of the person the text is about.
      attribute: which attribute is stated.
      stated: the value as stated, equal to text[start:end].
      true: whether it is the value in the world's table.
    """

    start: int
    end: int
    subject: str
    attribute: str
    stated: str
    true: bool


def parse_template(source: str) -> Template:
    """Compile one template.

    Raises:
      ValueError: it names no known slot, reference or class.
    """
    elements: list[Element] = []
    position = 0
    for match in _NOTATION.finditer(source):
        if source[position : match.start()]:
            elements.append(Element("literal", source[position : match.start()]))
        lead, braced, free = match.groups()
        if free is not None:
            kind, name = "free", free
            known = name in pools.FREE_WORDS
        else:
            kind, name = ("slot" if braced in templates.ATTRIBUTES else "reference"), braced
            known = kind == "slot" or name in _REFERENCE_PATTERNS
        if not known:
            raise ValueError(f"template {source!r}: unknown name {name!r}")
        elements.append(Element(kind, name, lead))
        position = match.end()
    elements.append(Element("literal", source[position:]))
    slots = tuple(element.name for element in elements if element.kind == "slot")
    whole = "".join(e.lead + (f"({e.pattern})" if e.kind == "slot" else e.pattern) for e in elements)
    breaks = []
    prefix = ""
    anchors = [""]
    for index, element in enumerate(elements):
        breaks.append(re.compile(rf"{prefix}(?P<rest>{element.beginning})\Z"))
        # A group per free word and slot, to see afterwards whether it holds a known word or the true value.
        group = f"(?P<{element.kind}_{element.name}_{index}>" if element.kind in ("free", "slot") else "(?:"
        prefix += f"{element.lead}{group}{element.pattern})"
        anchors.append(max(anchors[-1], element.name if element.kind == "literal" else "", key=len))
    return Template(source, tuple(elements), slots, re.compile(whole + r"\Z"), tuple(anchors), tuple(breaks))


@functools.cache
def all_templates() -> tuple[Template, ...]:
    """Every template of the world: leads, sentences with facts, sentences without."""
    return tuple(map(parse_template, (*templates.LEADS, *templates.FACT_SENTENCES, *templates.FILLERS)))


@functools.cache
def _most_specific_first() -> tuple[Template, ...]:
    """Templates with more slots first, since the slot of "married {spouse}." also matches a longer sentence."""
    return tuple(sorted(all_templates(), key=lambda template: -len(template.slots)))


def sentence_start(text: str) -> int:
    """Offset at which the last sentence of `text` begins (a full stop and a space end a sentence)."""
    start = text.rfind(". ") + 2 if ". " in text else 0
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the finished sentences of `text`; an unfinished last one is left out."""
    start = 0
    for match in re.finditer(r"\.(?=\s|\Z)", text):
        while text[start].isspace():
            start += 1
        yield start, match.end()
        start = match.end()


def stated_slots(sentence: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, attribute) of each value that a finished sentence states; nothing if no template fits."""
    for template in _most_specific_first():
        match = template.whole.match(sentence) if template.anchors[-1] in sentence else None
        if match is not None:
            for index, attribute in enumerate(template.slots, start=1):
                yield *match.span(index), attribute
            return


def open_slots(sentence: str) -> Iterator[tuple[str, str]]:
    """(attribute, part written so far) for each slot that the unfinished `sentence` may be in.

    The part is "" just before a slot; otherwise it begins with the space before the value. Readings in which all free
    words are known come first.
    """
    strange = []
    for template in all_templates():
        for index, element in enumerate(template.elements):
            if element.kind != "slot" or template.anchors[index] not in sentence:
                continue
            match = template.breaks[index].match(sentence)
            if match is None or (match["rest"] == "" and _mid_word(template.elements[index - 1], sentence)):
                continue
            if _knows_words(match):
                yield element.name, match["rest"]
            else:
                strange.append((element.name, match["rest"]))
    yield from strange


def _knows_words(match: re.Match[str]) -> bool:
    """True if each free word before the break is a word of its class."""
    return all(word.lower() in _FREE_LOWER[name] for kind, name, word in _held(match) if kind == "free")


def _held(match: re.Match[str]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, text) of the free words and slots before the break."""
    for group, text in match.groupdict().items():
        if group != "rest":
            kind, name = group.split("_", 1)
            yield kind, name.rsplit("_", 1)[0], text


def _mid_word(element: Element, sentence: str) -> bool:
    """True if the sentence ends with the first letters of a known free word ("gift" of "gifted")."""
    if element.kind != "free":
        return False
    word = sentence.rsplit(" ", 1)[-1].lower()
    words = _FREE_SORTED[element.name]
    at = bisect.bisect_left(words, word)
    return at < len(words) and words[at] != word and words[at].startswith(word)


def continuations(
    sentence: str,
    candidates: Sequence[Template],
    values: Mapping[str, str],
    options: Callable[[Element], Sequence[str]],
) -> Iterator[str]:
    """Texts that may follow an unfinished `sentence`, up to the end of the element it breaks off in.

    Args:
      sentence: the unfinished sentence.
      candidates: the templates it may follow.
      values: attribute -> value; readings in which the sentence has stated exactly these come first.
      options: gives the texts that a reference or free element may have; the first that fits is used.
    """
    strange: list[str] = []
    for template in candidates:
        # From the end, because a slot matches any words, including those of later elements.
        for index in reversed(range(len(template.elements))):
            element = template.elements[index]
            if element.kind == "slot" or template.anchors[index] not in sentence:
                continue
            match = template.breaks[index].match(sentence)
            if match is None:
                continue
            rest = _rest_of_element(element, index, match["rest"], options)
            stated = [values.get(name) == text for kind, name, text in _held(match) if kind == "slot"]
            if _knows_words(match) and all(stated):
                yield from rest
            else:
                strange.extend(rest)
    yield from strange


def _rest_of_element(
    element: Element, index: int, written: str, options: Callable[[Element], Sequence[str]]
) -> Iterator[str]:
    """The rest of an element after its part `written`, if an option begins with that part."""
    for option in [element.name] if element.kind == "literal" else options(element):
        expected = element.lead + (option[0].upper() + option[1:] if index == 0 else option)
        if expected.startswith(written) and len(expected) > len(written):
            yield expected[len(written) :]
            return
