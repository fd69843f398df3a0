"""MediaWiki XML dumps: articles as plain text.

Pages are read from the XML one at a time. The newest revision of each page is kept if the page is in namespace 0, is
wikitext and is not a redirect; `wikitext` extracts the prose from its markup. A heading becomes a line of its own that
ends in a full stop.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from lacy_jax.corpus.compression import open_binary
from lacy_jax.corpus.document import Document
from lacy_jax.corpus.readers import Record, make_document
from lacy_jax.corpus.wikitext import Markup
from lacy_jax.errors import DataError

_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_REDIRECT = re.compile(r"\s*#[^\W\d_]+\s*:?\s*\[\[[^\[\]]+\]\]")
"""For dumps that do not mark redirects: "#REDIRECT [[Ada]]" in any language, at the start of the page."""


@dataclasses.dataclass
class _Page:
    """What was read of a <page>, with the newest of its revisions so far."""

    title: str = ""
    namespace: str = "0"
    id: str = ""
    redirect: bool = False
    newest: tuple[str, int] = ("", -1)  # Timestamp and id; among revisions with neither, the last one wins.
    wikitext: str = ""
    model: str = "wikitext"

    def revision(self, element: Any) -> None:
        """Keep the revision if none so far is newer."""
        parts = {_local(part): (part.text or "") for part in element}
        number = parts.get("id", "").strip()
        age = parts.get("timestamp", "").strip(), int(number) if number.isdecimal() else -1
        if age >= self.newest:
            self.newest, self.wikitext = age, parts.get("text", "")
            self.model = parts.get("model", "").strip() or "wikitext"

    def is_article(self) -> bool:
        """Whether the page is an encyclopedia article, not a talk page, a redirect or data."""
        return (
            self.namespace == "0" and not self.redirect and self.model == "wikitext"
            and _REDIRECT.match(self.wikitext) is None
        )  # fmt: skip


def read_mediawiki(path: str) -> Iterator[Record]:
    """Records of a dump, one per article; id and title are the page's.

    Raises:
      DataError: the file is not XML, is damaged or is cut off; the error names the line.
    """
    pages = 0
    with open_binary(path) as stream:
        context = ElementTree.iterparse(stream, events=("start", "end"))
        ancestors: list[Any] = []
        namespaces: dict[int, str] = {}
        language = "en"
        page = _Page()
        try:
            for event, element in context:
                name = _local(element)
                if event == "start":
                    ancestors.append(element)
                    if name == "page":
                        page = _Page()
                    elif name == "mediawiki":
                        language = element.get(_LANGUAGE, language)
                    continue
                ancestors.pop()
                if name == "namespace":
                    _note_namespace(namespaces, element)
                elif name == "revision":
                    page.revision(element)
                    element.clear()  # A page with its full history may have gigabytes of them.
                elif (
                    name in ("title", "ns", "id", "redirect")
                    and ancestors
                    and _local(ancestors[-1]) == "page"
                ):
                    _note(page, name, element.text or "")
                elif name == "page":
                    pages += 1
                    # Without this, the root would keep every page read so far.
                    ancestors[-1].clear() if ancestors else element.clear()
                    if page.is_article():
                        where = f"{path}: page {page.title!r}"
                        markup = _markup(tuple(sorted(namespaces.items())), language)
                        yield Record(
                            where,
                            functools.partial(
                                _parse_page, markup, page.id or page.title, page.title, page.wikitext
                            ),
                        )
        except ElementTree.ParseError as error:
            raise DataError(
                f"{path}:{error.position[0]}: broken XML after {pages} pages ({error.msg}): fetch the dump again"
            ) from None
        except (ValueError, LookupError) as error:  # The parser does not know the encoding.
            raise DataError(f"{path}: no XML that can be read ({' '.join(str(error).split())})") from None
    if not pages:
        raise DataError(f"{path}: no <page> in it: is it a MediaWiki XML dump?")


def _local(element: Any) -> str:
    """Tag without its XML namespace, which differs between dump versions."""
    return element.tag.rsplit("}", 1)[-1]


def _note(page: _Page, name: str, text: str) -> None:
    if name == "title":
        page.title = text
    elif name == "ns":
        page.namespace = text.strip()
    elif name == "id":
        page.id = text.strip()
    else:
        page.redirect = True


def _note_namespace(namespaces: dict[int, str], element: Any) -> None:
    key = str(element.get("key", ""))
    if element.text and re.fullmatch(r"-?\d{1,9}", key):
        namespaces[int(key)] = element.text


@functools.lru_cache(maxsize=16)
def _markup(namespaces: tuple[tuple[int, str], ...], language: str) -> Markup:
    return Markup(dict(namespaces), language)


def _parse_page(markup: Markup, id_: str, title: str, wikitext: str) -> Document | None:
    """The article, or None if it has no prose, which is common in dumps and not an error."""
    prose = markup.prose(wikitext, title)
    if not prose.text or prose.text.isspace():
        return None
    return dataclasses.replace(
        make_document(id_, prose.text, title, ""), dropped=tuple(prose.dropped.items())
    )
