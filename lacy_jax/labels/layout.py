"""What the rules find in a text without parsing it: its subject, its headings, its content words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lacy_jax.labels.keywords import ABBREVIATIONS, FINITE_VERBS, FUNCTION_WORDS
from lacy_jax.labels.spans import Span

_LINE = re.compile(r"^[\"“(]?[^\W_a-z][^\n]{0,78}$(?=\n)", re.MULTILINE)
_PLAIN_LINE = re.compile(r"[^\W\d_a-z][^\W\d_]*(?:[ -][a-z]+){0,7}")
"""A line in sentence case without digits or punctuation."""
_INNER_END = re.compile(r"(?<![A-Z])(?<!\b(?:Dr|St|vs))[.;!?]\s")
_SENTENCE_WORDS = re.compile(
    rf"(?:{'|'.join(FINITE_VERBS)}|[a-z]+ed|shall|should|must|may|can|will|been|be|do|does)\b"
)
_ABBREVIATION = re.compile(rf"\b(?:[A-Z]|{'|'.join(ABBREVIATIONS)})\.$")
_PRONOUNS = frozenset("He She It They We I You This There These".split())
_HEADING_WORDS = 8
_PARAGRAPH = 60
"""A line of at least this many characters is a paragraph, not a list item."""
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def subject_name(title: str) -> str:
    """The title without its disambiguation: "Jay Hayden (actor)" gives "Jay Hayden"."""
    return re.sub(r"\s*\(.*\)$", "", title)


def given(title: str) -> list[str]:
    """What counts as mentioned before the text begins: the subject's name, and each number in it separately."""
    name = subject_name(title)
    return [name, *re.findall(r"\d+", name)]


def subject_end(text: str, title: str) -> int:
    """Where the subject's name at the very start of the text ends; 0 if the text does not begin with it."""
    name = subject_name(title)
    return len(name) if name and text.startswith(name) else 0


def headings(text: str) -> list[Span]:
    """Section headings such as "Career.", "World War II." or "1990–1995: Early years."

    They state no fact, though parsers often find entities in them. A heading is a short line with text below it that is
    not a sentence (no pronoun first, no finite verb) and ends in the full stop that our readers add. A line without
    a full stop is a heading only if it is in sentence case above a paragraph; otherwise list items would count.
    """
    return [match.span() for match in _LINE.finditer(text) if match.start() > 0 and _is_heading(text, match)]


def _is_heading(text: str, line: re.Match[str]) -> bool:
    body = line[0].rstrip()
    words = body.removesuffix(".").split()
    if not words or len(words) > _HEADING_WORDS or words[0] in _PRONOUNS:
        return False
    if not body.endswith("."):
        following = text[line.end() + 1 : line.end() + 1 + _PARAGRAPH]
        return (
            _PLAIN_LINE.fullmatch(body) is not None and len(following) == _PARAGRAPH and "\n" not in following
        )
    if body.endswith("...") or _INNER_END.search(body):
        return False
    return not any(_SENTENCE_WORDS.match(word) for word in words[1:])


def ends_with_abbreviation(text: str) -> bool:
    """Whether `text` ends with an initial or abbreviation ("J.", "U.S.", "Dr."), so that its full stop need not end the
    sentence."""
    return _ABBREVIATION.search(text[-12:]) is not None


def content_words(text: str, factual: Iterable[Span]) -> Iterator[Span]:
    """Content words that state no fact: not function words, and not overlapping `factual` (sorted spans)."""
    spans = iter(factual)
    span = next(spans, None)
    for match in _WORD.finditer(text):
        start, end = match.span()
        while span is not None and span[1] <= start:
            span = next(spans, None)
        if (span is None or span[0] >= end) and match[0].lower() not in FUNCTION_WORDS:
            yield start, end
