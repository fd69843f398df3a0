"""Labels without a model: names, numbers, dates, quoted titles and keywords, by regular expressions.

For machines without an English pipeline; it needs only Python (not even spaCy's blank English). These count as facts,
listed by the name that is recorded as the rule that fired:

1. `name`: a run of capitalised words ("University of Oxford", "Jay Hayden"), joined by short connectives. Function
   words at its start are cut off. A single word that opens a sentence counts only if it also occurs, capitalised,
   inside a sentence of the text.
2. `number`, `date`: numbers with their attached signs and units (%, km, ordinals, currency); months with day and year.
3. `title`: up to twelve words in double quotes, with a capital or a digit among them.
4. `occupation`, `field`, `sport`, `direction`, `number`...: words of the keyword lists.

As in the full rules (`spacy_rules`), only first mentions count, the subject of the document is not a fact, and headings
state nothing. Content words that are not factual are "neither factual nor grammatical".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from lacy_jax.corpus.document import Document
from lacy_jax.labels.keywords import ABBREVIATED_TITLES, FUNCTION_WORDS, MONTHS, keyword_rule
from lacy_jax.labels.layout import content_words, headings
from lacy_jax.labels.mentions import first_mentions
from lacy_jax.labels.spans import Labels

RULES_VERSION = "5"

_MONTH = "|".join(month.capitalize() for month in MONTHS)
_CAP = rf"(?:(?:[A-Z]\.)+|(?:{'|'.join([*ABBREVIATED_TITLES, 'Sir'])})\.|[^\W\d_a-zß-öø-ÿ][\w'’]*(?:-\w+)*)"
_CONNECTIVES = "|".join(
    name.replace(" ", "[ ]")  # The pattern below is verbose, so plain spaces in it are ignored.
    for name in (
        "of the", "of", "de la", "de", "del", "della", "di", "da", "do", "dos", "du", "des", "la", "le", "el", "al",
        "van der", "van", "von", "zu", "bin", "ibn", "y", "e", "&",
    )
)  # fmt: skip
_PATTERN = re.compile(
    rf"""
    (?P<title>["“](?=[^"”\n]{{1,80}}["”])(?=[^"”\n]*[A-Z0-9])[^"”\n]+["”])
  | (?P<date>(?:\d{{1,2}}(?:st|nd|rd|th)?[ ])?(?:{_MONTH})\b(?:[ ]\d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,?[ ]\d{{3,4}}\b)?)
  | (?P<number>[$£€¥]?\d[\d,.:/–−-]*\d(?:st|nd|rd|th|s|%|km|m|kg)?|[$£€¥]?\d(?:st|nd|rd|th|s|%)?)
  | (?P<name>{_CAP}(?:[ -](?:(?:{_CONNECTIVES})[ ])?{_CAP})*)
  | (?P<word>[^\W\d_]+)
    """,
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?:;\n]['\"”’)]*\s*$")
_INSIDE = re.compile(r"(?<=[\w,;] )[^\W\d_]\w*")
_TITLE_WORDS = 12  # Longer quotations are speech, not titles.


class RuleLabeller:
    """Labels by the rules above."""

    name = "rules"
    version = RULES_VERSION

    def label(self, document: Document) -> Labels:
        """Labels of one document."""
        text = document.text
        labels = first_mentions(text, document.title, _candidates(text))
        return dataclasses.replace(labels, nongrammatical=tuple(content_words(text, labels.factual)))


def _candidates(text: str) -> Iterator[tuple[int, int, str]]:
    """Spans that would state a fact if mentioned for the first time, in text order: (start, end, rule)."""
    # Words inside sentences: one that is capitalised there is also a name at the start of a sentence.
    inside = frozenset(_INSIDE.findall(text))
    titles = headings(text)
    at = 0
    for match in _PATTERN.finditer(text):
        start, end, kind = match.start(), match.end(), str(match.lastgroup)
        while at < len(titles) and titles[at][1] <= start:
            at += 1
        if at < len(titles) and titles[at][0] <= start:
            continue
        if kind == "word":
            rule = keyword_rule(text, start, end) if match[0].islower() else ""
            if rule:
                yield start, end, rule
        elif kind == "name":
            yield from _name(text, start, end, inside)
        elif kind == "title":
            if match[0].count(" ") < _TITLE_WORDS:
                yield start + 1, end - 1, kind
        else:
            yield start, end, kind


def _name(text: str, start: int, end: int, inside: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """A capitalised run, without the common words that may open its sentence."""
    cut = _word_end(text, start, end)
    first = text[start:cut]
    opens = start == 0 or _SENTENCE_END.search(text, max(0, start - 4), start) is not None
    if opens and cut == end and first not in inside and not first.isupper():
        if rule := keyword_rule(text, start, end):
            yield start, end, rule
        return
    while start < end and _grammatical(text[start:cut]):
        start = min(cut + 1, end)
        cut = _word_end(text, start, end)
    if start < end:
        yield start, end, "name"


def _word_end(text: str, start: int, end: int) -> int:
    space = text.find(" ", start, end)
    return end if space < 0 else space


def _grammatical(word: str) -> bool:
    """Whether a capitalised word is a function word; "US" and "IT" are not, "I" and "A" are."""
    return word.lower() in FUNCTION_WORDS and (len(word) == 1 or not word.isupper())
