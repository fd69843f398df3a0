"""Marks that stand in a text while its markup is taken off, and what is mended when it is.

Characters that no page has (they are taken out first) stand for what was taken out of a sentence, for a heading, and for
what an author has written as an entity, so that it is no markup.
"""

from __future__ import annotations

import re

HIDDEN = "\x01"
"""Stands where something was taken out of a sentence, until its marks and spaces are mended."""
HEADING = "\x00"
"""Begins the line of a heading, before its level, until empty sections are dropped."""
_QUOTES = re.compile(r"'{2,5}")
_POSSESSIVE = re.compile(r"'''(?=s\b)")  # "''Iliad'''s": the end of italics and an apostrophe.
_MAGIC_WORD = re.compile(r"__[^\W\d_a-zà-þß-ÿ](?:[^\W\d_a-zß-öø-ÿ]|_)*__")
_SPACES = re.compile(r"[ \t\xa0]+")
_BLANK_LINES = re.compile(r"\n\s*\n+")
_HIDDEN_RUN = re.compile(rf"{HIDDEN}(?: ?{HIDDEN})++")
# Around what was taken out: "Tours ()", "Rand (; born 1905)", "(1905; )", "red, , blue", "the sea ." The quantifiers are
# possessive or bounded: a page may have thousands in a row.
_EMPTIED = re.compile(
    rf" ?[(\[](?:[\s,;:/–]|\bor\b|\band\b)*+{HIDDEN}(?:[\s,;:/–{HIDDEN}]|\bor\b|\band\b)*+[)\]]"
)
_OPENED = re.compile(rf"(?<=[(\[])(?: ?{HIDDEN} ?[,;:]?)++ ?")
_CLOSED = re.compile(rf"(?: ?[,;:]? ?{HIDDEN}){{1,40}}+ ?(?=[)\]])")
_ENUMERATED = re.compile(rf"[,;] ?{HIDDEN} ?(?=[,;])")
_BEFORE_MARK = re.compile(rf" ?{HIDDEN} ?(?=[,.;)\]])")
_MARKS = "[]{}|'=<>&_~"
LITERAL = {ord(mark): chr(0x0E + i) for i, mark in enumerate(_MARKS)}
"""Characters that an author has written as entities, so that they are no markup, on their way to the text."""
_WRITTEN = {chr(0x0E + i): mark for i, mark in enumerate(_MARKS)}
_LITERALS = re.compile(f"[{''.join(_WRITTEN)}]")


def mended(text: str) -> str:
    """The lines without what the markup leaves behind."""
    text = _QUOTES.sub("", _POSSESSIVE.sub("'", _MAGIC_WORD.sub("", text)))
    text = _HIDDEN_RUN.sub(HIDDEN, _SPACES.sub(" ", text))
    for pattern in (_EMPTIED, _OPENED, _CLOSED, _ENUMERATED, _BEFORE_MARK):
        text = pattern.sub("", text)
    text = _SPACES.sub(" ", _LITERALS.sub(lambda match: _WRITTEN[match[0]], text.replace(HIDDEN, "")))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _drop_empty_sections(_BLANK_LINES.sub("\n", text).strip())


def _drop_empty_sections(text: str) -> str:
    """Headings under which nothing is left, subsections included, are dropped."""
    kept: list[str] = []
    below = 0  # The least level that a heading must have to stand over the text seen so far, from below.
    for line in reversed(text.split("\n")):
        if not line.startswith(HEADING):
            below = 7
            kept.append(line)
        elif int(line[1]) < below:
            below = int(line[1])
            kept.append(line[2:])
    return "\n".join(reversed(kept))
