"""What the rules read off a text without parsing it: its given subject, its headings, its content words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lacy_jax.labels.keywords import FUNCTION_WORDS
from lacy_jax.labels.spans import Span

# A line above others, in sentence case, without digits or inner punctuation: "Early life and education." What
# begins with a pronoun is a sentence: "He won twice."
_HEADING = re.compile(
    r"^(?!(?:He|She|It|They|We|I|This|There|These)\b)[^\W\d_a-z][^\W\d_]*(?:[ -][a-z]+){0,7}\.?[ \t]*$(?=\n)",
    re.MULTILINE,
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def subject_name(title: str) -> str:
    """The title without what tells it from others of that name: "Jay Hayden (actor)" is "Jay Hayden"."""
    return re.sub(r"\s*\(.*\)$", "", title)


def given(title: str) -> list[str]:
    """What counts as mentioned before the text begins: the subject's name, and each number in it for itself."""
    name = subject_name(title)
    return [name, *re.findall(r"\d+", name)]


def subject_end(text: str, title: str) -> int:
    """Where the subject's name at the very start of the text ends; 0 if the text does not begin with it."""
    name = subject_name(title)
    return len(name) if name and text.startswith(name) else 0


def headings(text: str) -> list[Span]:
    """Section headings such as "Career.": they name no fact, though parsers like to see entities in them."""
    return [match.span() for match in _HEADING.finditer(text) if match.start() > 0]


def content_words(text: str, factual: Iterable[Span]) -> Iterator[Span]:
    """Words that carry content but state no fact: neither function words nor overlapping `factual` (sorted)."""
    spans = iter(factual)
    span = next(spans, None)
    for match in _WORD.finditer(text):
        start, end = match.span()
        while span is not None and span[1] <= start:
            span = next(spans, None)
        if (span is None or span[0] >= end) and match[0].lower() not in FUNCTION_WORDS:
            yield start, end
