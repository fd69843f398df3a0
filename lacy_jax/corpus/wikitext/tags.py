"""What is taken off wikitext before it is parsed: comments, tags, tables, brackets without a partner.

Marks of HTML go before anything is parsed: an unclosed one is the most usual damage, and would hide all that follows.
"""

from __future__ import annotations

import collections
import functools
import html
import re

from lacy_jax.corpus.wikitext.marks import HIDDEN, LITERAL
from lacy_jax.corpus.wikitext.numbers import raised

# Tags whose content is not shown as prose. The first are MediaWiki extensions, whose content is no wikitext at all.
_DROPPED = (
    "ref references math chem ce gallery timeline score syntaxhighlight source imagemap mapframe maplink graph hiero categorytree "
    "templatedata templatestyles inputbox indicator section pagelist ruby phonos style script includeonly pre table"
)
_SHOWN = (
    "p br hr li dd dt ul ol dl tr td th tbody thead div span center blockquote poem small big b i u s em strong strike del ins sub sup code tt kbd "
    "samp var cite q abbr bdi bdo font mark time wbr noinclude onlyinclude nowiki h1 h2 h3 h4 h5 h6 caption data dfn rb rp rt rtc "
    "noindex langconvert translate tvar"
)
_LINE_TAGS = frozenset(
    "p br hr li dd dt ul ol dl tr div center blockquote poem h1 h2 h3 h4 h5 h6 caption".split()
)
_EXTENSION = re.compile(
    rf"""<!--(?:[^-]|-(?!->))*+(?:-->|\Z)
    | <nowiki\s*+>(?P<literal>(?:[^<]|<(?!/?nowiki))*+)</nowiki\s*>
    | <(?P<tag>{_DROPPED.replace(" ", "|")})\b(?P<attributes>[^<>]*+)
      (?:(?<=/)>|>(?P<content>(?:[^<]|<(?!/?(?P=tag)\b))*+)</(?P=tag)\s*+>)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TAG = re.compile(rf"<(/?)({'|'.join([*_DROPPED.split(), *_SHOWN.split()])})\b[^<>]*+>", re.IGNORECASE)
_RAISED = re.compile(r"<sup\b[^<>]*+>([^<>{}\[\]]{1,12})</sup\s*+>", re.IGNORECASE)
_OPEN_ADDRESS = re.compile(r"\[(?=(?:[a-z]+:)?//[^\[\]\n]*+(?:[\[\n]|\Z))")
"""The bracket of an external link that has no other."""
_DEEPEST = 30
"""Brackets within brackets that are read."""
BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")
_ALONE = re.compile(r"(?:\{\{|\[\[)(?:[^{}\[\]|\n]{0,200}\|)?|\}\}|\]\]")
"""A bracket without its partner; with the name of a template or link, whose text goes on after a bar."""
_TABLE_LINE = re.compile(r"[ \t:*]*(?:\{\|(?!\})|\|\}(?!\}))")


def without_tags(text: str, dropped: collections.Counter[str]) -> str:
    """Without comments, without tags whose content is no prose, without the marks of all others."""
    extension = functools.partial(_extension, dropped=dropped)
    text = _EXTENSION.sub(extension, text)
    text = _EXTENSION.sub(extension, text)  # <table> within <table>.
    text = _RAISED.sub(lambda match: raised(html.unescape(match[1]).strip()), text)
    return _TAG.sub(lambda match: "\n" if match[2].lower() in _LINE_TAGS else "", text)


def _extension(match: re.Match[str], dropped: collections.Counter[str]) -> str:
    if match["literal"] is not None:
        return html.unescape(match["literal"]).translate(LITERAL)
    if match["tag"] is None:
        return ""
    tag, content = match["tag"].lower(), match["content"] or ""
    if tag == "source" and "inline" not in match["attributes"] and "lang" not in match["attributes"]:
        return content
    if tag in ("syntaxhighlight", "source") and "inline" in match["attributes"]:
        return content.translate(LITERAL)
    kind = {
        "ref": "references",
        "references": "",
        "math": "formulas",
        "chem": "formulas",
        "ce": "formulas",
        "table": "tables",
    }.get(tag, f"<{tag}>")
    if kind and (content.strip() or kind != "references"):
        dropped[kind] += 1
    return HIDDEN


def without_tables(text: str, dropped: collections.Counter[str]) -> str:
    """Without {| ... |}; of one that never ends, without its lines."""
    if "{|" not in text:
        return text
    kept: list[str] = []
    depth = 0
    for line in text.split("\n"):
        mark = _TABLE_LINE.match(line)
        if mark and mark[0].endswith("{|"):
            depth += 1
            dropped["tables"] += depth == 1
        elif mark and depth:
            depth -= 1
            if not depth:
                kept.append(line[mark.end() :])
        elif depth and line.startswith("=") and line.rstrip().endswith("="):
            depth = 0  # A heading: the table was never closed.
            dropped["unclosed markup"] += 1
            kept.append(line)
        elif not depth:
            kept.append(line)
    return "\n".join(kept)


def balanced(text: str, dropped: collections.Counter[str]) -> str:
    """Without double brackets that are never closed, were never opened or lie too deep: they would hide what follows,
    and parsers need time or stack without end for many of them."""
    text = _OPEN_ADDRESS.sub("", text)
    opened: list[tuple[str, int]] = []
    alone: list[int] = []
    count = {"{{": 0, "[[": 0}
    for match in BRACKETS.finditer(text):
        mark = match[0]
        if mark in count:
            opened.append((mark, match.start()))
            count[mark] += 1
            continue
        partner = "{{" if mark == "}}" else "[["
        if not count[partner]:
            alone.append(match.start())
            continue
        while True:
            found, place = opened.pop()
            count[found] -= 1
            if found != partner:
                alone.append(place)
                continue
            if len(opened) >= _DEEPEST:
                alone += [place, match.start()]
            break
    alone += [place for _, place in opened]
    if not alone:
        return text
    dropped["unclosed markup"] += len(alone)
    kept, last = [], 0
    for place in sorted(alone):
        kept.append(text[last:place])
        last = _ALONE.match(text, place).end()  # type: ignore[union-attr]
    return "".join([*kept, text[last:]])
