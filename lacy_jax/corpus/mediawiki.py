"""MediaWiki XML dumps: articles as plain text.

Pages stream out of the XML one at a time. Kept are pages of namespace 0 that are no redirects; what wikitext
says in prose is kept, what it shows beside the prose (templates, tables, references, images, categories) is
dropped. A heading becomes a line of its own that ends in a full stop.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import mwparserfromhell

from lacy_jax.corpus.compression import open_binary
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.readers import Record, make_document
from lacy_jax.errors import DataError

# Link prefixes that show no text of the article where they stand.
_HIDDEN_LINK = re.compile(r"(?i)\s*(?:file|image|category|media|[a-z]{2,3}|[a-z]{2,3}-[a-z-]+|simple)\s*:")
_DROPPED_TAGS = frozenset(
    [
        "ref",
        "references",
        "table",
        "gallery",
        "math",
        "timeline",
        "score",
        "syntaxhighlight",
        "source",
        "imagemap",
        "style",
        "div",
        "hiero",
        "chem",
        "code",
        "pre",
    ]
)
_REDIRECT = re.compile(r"(?i)\s*#\s*redirect\b")
_COMMENT = re.compile(r"(?s)<!--.*?(?:-->|\Z)")
_REFERENCE = re.compile(r"(?is)<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>")
_LEFTOVER_TABLE = re.compile(r"(?s)\{\|.*?\|\}")
_POSSESSIVE = re.compile(r"'''(?=s\b)")  # "''Iliad'''s": the end of italics and an apostrophe.
_QUOTES = re.compile(r"'{2,5}")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_LIST_MARK = re.compile(r"(?m)^[*#:;]+[ \t]*")
_SPACES = re.compile(r"[ \t\xa0]+")
_BLANK_LINES = re.compile(r"\n\s*\n+")
_EMPTY_BRACKETS = re.compile(r"\s*\((?:[\s,;]|or)*\)")


def read_mediawiki(path: str) -> Iterator[Record]:
    """Records of a dump, one per article; id and title are the page's.

    Raises:
      DataError: the file is no XML, is broken or cut off; names the line.
    """
    pages = 0
    with open_binary(path) as stream:
        context = ElementTree.iterparse(stream, events=("start", "end"))
        ancestors: list[Any] = []
        try:
            for event, element in context:
                if event == "start":
                    ancestors.append(element)
                    continue
                ancestors.pop()
                if _local(element) == "page":
                    pages += 1
                    title, namespace, id_, redirect, wikitext = _page(element)
                    # Without this every page read so far would hang from the root.
                    ancestors[-1].clear() if ancestors else element.clear()
                    if namespace == "0" and not redirect:
                        where = f"{path}: page {title!r}"
                        yield Record(where, functools.partial(_parse_page, id_, title, wikitext))
        except ElementTree.ParseError as error:
            line = error.position[0]
            raise DataError(
                f"{path}:{line}: broken XML after {pages} pages ({error.msg}): fetch the dump again"
            ) from None
    if not pages:
        raise DataError(f"{path}: no <page> in it: is it a MediaWiki XML dump?")


def _local(element: Any) -> str:
    """Tag without its XML namespace, which differs between dump versions."""
    return element.tag.rsplit("}", 1)[-1]


def _page(page: Any) -> tuple[str, str, str, bool, str]:
    """(title, namespace, id, is a redirect, wikitext of the last revision) of a <page>."""
    title, namespace, id_, redirect, wikitext = "", "0", "", False, ""
    for child in page:
        name = _local(child)
        if name == "title":
            title = child.text or ""
        elif name == "ns":
            namespace = (child.text or "0").strip()
        elif name == "id":
            id_ = (child.text or "").strip()
        elif name == "redirect":
            redirect = True
        elif name == "revision":
            for part in child:
                if _local(part) == "text":
                    wikitext = part.text or ""
    return title, namespace, id_ or title, redirect or _REDIRECT.match(wikitext) is not None, wikitext


def _parse_page(id_: str, title: str, wikitext: str) -> Document | None:
    """The article, or None if it has no prose: that is common in dumps and no damage."""
    text = plain_text(wikitext)
    return make_document(id_, text, title, "") if text else None


def plain_text(wikitext: str) -> str:
    """The prose of an article's wikitext; paragraphs and headings are lines."""
    # References go first: a damaged one would make the parser take what follows for plain text. Quotes go last,
    # because in real articles they often do not pair up.
    code = mwparserfromhell.parse(_REFERENCE.sub("", _COMMENT.sub("", wikitext)), skip_style_tags=True)
    text = "".join(_node_text(node) for node in code.nodes)
    text = _LEFTOVER_TABLE.sub("", _MAGIC_WORD.sub("", text))
    text = _QUOTES.sub("", _POSSESSIVE.sub("'", text))
    text = _LIST_MARK.sub("", text)
    text = _EMPTY_BRACKETS.sub("", text)  # What a template leaves behind: "Tours ()".
    text = _SPACES.sub(" ", text)
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _drop_empty_sections(_BLANK_LINES.sub("\n", text).strip())


_HEADING_MARK = "\x00"


def _node_text(node: Any) -> str:
    """Prose of one node of wikitext; headings are marked until empty sections are dropped."""
    nodes = mwparserfromhell.nodes
    if isinstance(node, nodes.Text):
        return str(node.value).replace(_HEADING_MARK, "")
    if isinstance(node, nodes.Wikilink):
        if _HIDDEN_LINK.match(str(node.title)):
            return ""
        shown = node.text if node.text is not None else node.title
        return _inner(shown).removeprefix(":")
    if isinstance(node, nodes.ExternalLink):
        return _inner(node.title) if node.title is not None else ""
    if isinstance(node, nodes.Heading):
        title = _inner(node.title).strip().rstrip(".")
        return f"\n{_HEADING_MARK}{title}.\n" if title else "\n"
    if isinstance(node, nodes.HTMLEntity):
        return str(node.normalize())
    if isinstance(node, nodes.Tag):
        name = str(node.tag).strip().lower()
        if name in _DROPPED_TAGS:
            return ""
        if name == "br":
            return "\n"
        if name in ("li", "dt", "dd") and node.wiki_markup:
            return str(node.wiki_markup)  # Removed with the other list marks, at the start of its line.
        return _inner(node.contents) if node.contents is not None else ""
    return ""  # Templates, arguments, comments.


def _inner(code: Any) -> str:
    return "".join(_node_text(node) for node in code.nodes)


def _drop_empty_sections(text: str) -> str:
    """Headings under which nothing is left (references, galleries) are dropped."""
    lines = text.split("\n")
    kept = [
        line.removeprefix(_HEADING_MARK)
        for line, following in zip(lines, [*lines[1:], _HEADING_MARK])
        if not (line.startswith(_HEADING_MARK) and following.startswith(_HEADING_MARK))
    ]
    return "\n".join(kept)
