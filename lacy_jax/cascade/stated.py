"""Whether a text states a value: word by word, a date in any order, a quantity in any unit.

Values are not compared letter by letter: "Parisian" does not state "Paris", and "1956" or "3.5" does not state "5"; but
"7 May 1956" states the year 1956, "May 7, 1956" is the same day, and "5 ft 9 in" is "175 cm". Case, accents and
different spellings of one letter do not matter ("Straße" and "STRASSE").
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from lacy_jax.corpus.units import Quantity, quantities

Span = tuple[int, int]
_WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)+|\w+")
_SENTENCE_MARK = re.compile(r"[.!?;\n]")
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{name}|{name[:4]}\\.?|{name[:3]}\\.?" for name in _MONTHS)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATE = re.compile(
    rf"(?<![\w.,-])(?:{_DAY}\s+(?:of\s+)?({_MONTH})(?:,?\s+(\d{{3,4}}))?(?![\w])"
    rf"|({_MONTH})\s+{_DAY}(?![\w.,]*\d)(?:,?\s+(\d{{3,4}}))?(?!\w)|({_MONTH}),?\s+(\d{{3,4}})(?!\w)"
    r"|(\d{4})-(\d\d)-(\d\d)(?![\w-])|(1\d{3}|20\d\d)(?![\w]|[.,]\d))",
    re.IGNORECASE,
)


def folded(text: str) -> str:
    """Text in the form used for comparing: without case and accents. Its length may differ from the original's."""
    if text.isascii():
        return text.lower()
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return plain.casefold()


@dataclasses.dataclass(frozen=True, slots=True)
class Date:
    """A date in a text; parts that the text leaves open are 0."""

    start: int
    end: int
    year: int = 0
    month: int = 0
    day: int = 0

    def covers(self, other: Date) -> bool:
        """Whether it states everything that the other does."""
        return all(
            not wanted or wanted == own
            for own, wanted in ((self.year, other.year), (self.month, other.month), (self.day, other.day))
        )


def dates(text: str) -> Iterator[Date]:
    """The dates in a text, in order: "7 May 1956", "May 7, 1956", "May 1956", "7 May", "1956-05-07", "1956"."""
    for match in _DATE.finditer(text):
        day, month, year, month2, day2, year2, month3, year3, *iso = match.groups()
        if iso[0]:
            yield Date(*match.span(), int(iso[0]), int(iso[1]), int(iso[2]))
        elif iso[3]:
            yield Date(*match.span(), int(iso[3]))
        else:
            name = (month or month2 or month3).lower()[:3]
            number = next(i for i, full in enumerate(_MONTHS, 1) if full.startswith(name))
            yield Date(*match.span(), int(year or year2 or year3 or 0), number, int(day or day2 or 0))


class Said:
    """What a text states; made once for many questions about it."""

    def __init__(self, text: str):
        self.text = text
        found = list(_WORD.finditer(text))
        self._spans: list[Span] = [match.span() for match in found]
        self._words = [_word(match[0]) for match in found]
        self._places: dict[str, list[int]] = {}
        for index, word in enumerate(self._words):
            self._places.setdefault(word, []).append(index)
        self._dates: list[Date] | None = None
        self._quantities: list[Quantity] | None = None

    def places(self, value: str) -> list[Span]:
        """Where the text states the value, in order; a date or a quantity that covers it counts as it."""
        wanted = _value(value)
        if wanted.date is not None:
            return [(date.start, date.end) for date in self._all_dates() if date.covers(wanted.date)]
        if wanted.quantity is not None:
            return [(q.start, q.end) for q in self._all_quantities() if q.same(wanted.quantity)]
        found = []
        for index in self._places.get(wanted.words[0], ()) if wanted.words else ():
            if tuple(self._words[index : index + len(wanted.words)]) == wanted.words:
                found.append((self._spans[index][0], self._spans[index + len(wanted.words) - 1][1]))
        return [span for span in found if not self._inside_other(span)] if wanted.number else found

    def wholes(self, value: str) -> list[Span]:
        """`places` without dates that contain more than the value: "1956" is not all of "7 May 1956"."""
        wanted = _value(value).date
        if wanted is None:
            return self.places(value)
        return [
            (date.start, date.end)
            for date in self._all_dates()
            if date.covers(wanted) and wanted.covers(date)
        ]

    def _inside_other(self, span: Span) -> bool:
        """Whether a bare number is part of a date, or stands before a unit."""
        parts: Sequence[Date | Quantity] = [*self._all_dates(), *self._all_quantities()]
        return any(part.start <= span[0] and span[1] <= part.end for part in parts)

    def words_before(self, place: int, count: int) -> list[str]:
        """The last `count` words before a place, within its sentence, folded."""
        index = bisect.bisect_left(self._spans, (place, place))
        first = max(index - count, 0)
        for at in range(index - 1, first - 1, -1):
            following = self._spans[at + 1][0] if at + 1 < index else place
            if _SENTENCE_MARK.search(self.text, self._spans[at][1], following):
                return self._words[at + 1 : index]
        return self._words[first:index]

    def words_after(self, place: int, count: int) -> list[str]:
        """The first `count` words from a place on, within its sentence, folded."""
        index = bisect.bisect_left(self._spans, (place, place))
        for at in range(index, min(index + count, len(self._words))):
            if _SENTENCE_MARK.search(
                self.text, self._spans[at - 1][1] if at > index else place, self._spans[at][0]
            ):
                return self._words[index:at]
        return self._words[index : index + count]

    def _all_dates(self) -> list[Date]:
        if self._dates is None:
            self._dates = list(dates(self.text))
        return self._dates

    def _all_quantities(self) -> list[Quantity]:
        if self._quantities is None:
            self._quantities = list(quantities(self.text))
        return self._quantities


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    """A value, prepared for searching: as a date, as a quantity, or word by word."""

    words: tuple[str, ...]
    date: Date | None
    quantity: Quantity | None
    number: bool


@functools.lru_cache(maxsize=1 << 16)
def _value(value: str) -> _Value:
    stripped = value.strip(" .,;")
    words = tuple(_word(match[0]) for match in _WORD.finditer(stripped))
    found = list(dates(stripped))
    date = found[0] if len(found) == 1 and (found[0].start, found[0].end) == (0, len(stripped)) else None
    quantity = None
    for one in quantities(stripped):
        if one.start == 0 and (one.end == len(stripped) or stripped[one.end :].lstrip().startswith("(")):
            quantity = one
        break
    return _Value(words, date, quantity, is_number(stripped))


def is_number(value: str) -> bool:
    """Whether a value is a bare number, which says little by itself."""
    return re.fullmatch(r"[\d.,]+", value.strip()) is not None


def states(text: str, values: Sequence[str]) -> bool:
    """Whether the text states one of the values, word by word; case, accents and marks do not matter."""
    said = f" {' '.join(_words(text))} "
    return any(f" {' '.join(words)} " in said for words in map(_words, values) if words)


def _words(text: str) -> list[str]:
    return [_word(match[0]) for match in _WORD.finditer(text)]


def _word(text: str) -> str:
    """A word folded; a number without the commas between its thousands."""
    return text.replace(",", "") if text[0].isdigit() else folded(text)
