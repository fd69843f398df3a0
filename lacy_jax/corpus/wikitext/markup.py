"""From an article's wikitext to its prose.

What wikitext says in prose is kept, in the words that a reader of the page sees: links by their text, inline templates
by what they show (`templates`), a number above the line as such. What stands beside the prose (infoboxes, tables,
references, images, formulas) is left out and counted, so that nobody has to guess what a corpus has lost.

The order is MediaWiki's own: first comments and the tags whose content is no wikitext, then templates and links. Marks of
HTML are taken off before anything is parsed: an unclosed one is the most usual damage, and would hide all that follows.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import mwparserfromhell

from lacy_jax.corpus.wikitext import tags
from lacy_jax.corpus.wikitext.dates import DATES
from lacy_jax.corpus.wikitext.marks import HEADING, HIDDEN, LITERAL, mended
from lacy_jax.corpus.wikitext.numbers import NUMBERS
from lacy_jax.corpus.wikitext.templates import Arguments, Render
from lacy_jax.corpus.wikitext.words import WORDS

RENDERS: dict[str, Render] = {**WORDS, **NUMBERS, **DATES}
"""What a template shows, by its name in lower case."""

EDITION = "2"
"""Changes with the text that is made of a page: part of a corpus' fingerprint."""

_MEDIA, _FILE, _CATEGORY = -2, 6, 14
_CANONICAL = {_MEDIA: ("media",), _FILE: ("file", "image"), _CATEGORY: ("category",)}
"""What MediaWiki understands in every language, by number of the namespace."""
_FILE_NAME = re.compile(
    r"(?i)[^:]+:.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp3|mp4|wav|flac|midi?|pdf|djvu|stl)\s*$"
)
_LANGUAGES = frozenset(
    (
        "ab ace ady af als alt am ami an ang ann anp ar arc ary arz as ast atj av avk awa ay az azb ba ban bar bat-smg bbc bcl bdr be "
        "be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bol bpy br bs btm bug bxr ca cbk-zam cdo ce ceb ch chr chy ckb co cr crh cs csb cu "
        "cv cy da dag de dga din diq dsb dtp dty dv dz ee el eml en eo es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag "
        "gan gcr gd gl glk gn gom gor got gpe gu guc gur guw gv ha hak haw he hi hif hr hsb ht hu hy hyw ia iba id ie ig igl ik ilo inh io "
        "is isv it iu ja jam jbo jv ka kaa kab kai kaj kbd kbp kcg kg kge ki kk kl km kn knc ko koi krc ks ksh ku kus kv kw ky la lad lb lbe "
        "lez lfn lg li lij lld lmo ln lo lt ltg lv mad mag mai map-bms mdf mg mhr mi min mk ml mn mni mnw mo mos mr mrj ms mt mwl my myv mzn "
        "nah nap nds nds-nl ne new nia nl nn no nov nqo nr nrm nso nup nv ny oc olo om or os pa pag pam pap pcd pcm pdc pfl pi pl pms pnb "
        "pnt ppl ps pt pwn qu rki rm rmy rn ro roa-rup roa-tara rsk ru rue rw sa sah sat sc scn sco sd se sg sh shi shn si simple sk skr sl "
        "sm smn sn so sq sr srn ss st stq su sv sw syl szl szy ta tay tcy tdd te tet tg th ti tig tk tl tly tn to tok tpi tr trv ts tt tum tw "
        "ty tyv udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh xmf yi yo za zea zgh zh zh-classical zh-min-nan zh-yue zu"
    ).split()
)
"""Wikipedia's language codes: a link with such a prefix leads to the same article elsewhere and shows nothing here."""

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_REFERENCE_TAGS = frozenset(["ref", "references"])

_SILENT = tuple(
    prefix.replace("_", " ")
    for prefix in (
        "cite citation vcite vancite harv sfn ref efn note citation_needed page_needed dead_link webarchive wayback clarify by_whom "
        "vague dubious disputed failed verif better_source unreliable self-published original_research pp- use_ engvar ipa pron "
        "respell audio listen coord flagicon flagdeco anchor clear main see_also further details about other distinguish redirect "
        "hatnote portal commons wikt wikiq wikis wikib wikiv wikimedia sister authority default displaytitle unreferenced multiple_ "
        "more_ expand stub toc short_desc good_article featured doi isbn issn oclc jstor pmid pmc arxiv bibcode hdl google_books icon "
        "internetquelle literatur belege hauptartikel lückenhaft ouvrage lien_web référence voir_ légende normdaten article_d début "
        "s- infobox taxobox navbox div_col col- colbegin colend #tag #invoke infobox_ palette gesprochen ankerlink"
    ).split()
)
"""How the names of templates begin that say nothing in prose: sources, remarks to editors, notes above an article,
pronunciation."""
_SILENT_NAMES = frozenset(
    "cn fact rp who when which where why for increase decrease steady yes no loc clr fin nobots bots api article - !-".split()
)
_ICON = re.compile(r"[a-z]{2,3} icon")

_SOUNDS = frozenset(["ipa"])
"""Shown where an article speaks of sounds, not where it says in parentheses how a name is pronounced."""
_FUNCTIONS = frozenset(["formatnum", "lc", "uc", "ucfirst", "lcfirst"])
"""Functions of MediaWiki that show what follows their colon."""
_BRACES = re.compile(r"\{\{|\}\}")
_NAME = re.compile(r"[^|}]*")
_LIST_MARK = re.compile(r"(?m)^[*#:;]+[ \t]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ARGUMENT = re.compile(r"\{\{\{[^{}|]*+\|?([^{}]*+)\}\}\}")
"""An argument of a template, which an article has none of: its default."""
_ODD_BRACES = re.compile(r"(?<!\{)\{(?:\{\{)+(?!\{)")


@dataclasses.dataclass(frozen=True)
class Prose:
    """An article as prose.

    Attributes:
      text: paragraphs and headings as lines, or "" if the page has no prose.
      dropped: what was left out, by kind: "template NAME" of templates that stood inside a sentence and are not known here;
        "templates beside the text", "references", "images", "tables", "formulas", "<TAG>", "unclosed markup" ...
    """

    text: str
    dropped: Mapping[str, int]


class Markup:
    """Turns the wikitext of one wiki into prose; see the module.

    Args:
      namespaces: names of the wiki's namespaces by number, as its dumps list them (`<siteinfo>`): German pages call a file
        "Datei". English names are understood everywhere.
      language: of the wiki, by which numbers are written.
    """

    def __init__(self, namespaces: Mapping[int, str] | None = None, language: str = "en"):
        self._language = language
        self._hidden: dict[str, str] = {}
        for number, kind in ((_FILE, "images"), (_MEDIA, "images"), (_CATEGORY, "categories")):
            for name in (*_CANONICAL[number], (namespaces or {}).get(number, "")):
                if name:
                    self._hidden[_normal(name)] = kind

    def prose(self, wikitext: str, title: str = "") -> Prose:
        """The prose of a page; never fails, whatever the markup.

        Args:
          title: of the page, which templates may name.
        """
        page = _Page(self, title)
        return Prose(page.read(wikitext), dict(page.dropped))


class _Page:
    """One page on its way to prose."""

    def __init__(self, markup: Markup, title: str):
        self._hidden, self._language, self._title = markup._hidden, markup._language, title
        self.dropped: collections.Counter[str] = collections.Counter()

    def read(self, wikitext: str) -> str:
        text = _CONTROL.sub("", wikitext.replace("\r\n", "\n").replace("\r", "\n"))
        text = tags.without_tables(tags.without_tags(text, self.dropped), self.dropped)
        text = _ENTITY.sub(_written, _LIST_MARK.sub("", text)).replace("<", LITERAL[ord("<")])
        if "{{{" in text:
            text = _ODD_BRACES.sub(lambda match: match[0][1:], _ARGUMENT.sub(r"\1", text))
        text = self._without_templates(tags.balanced(text, self.dropped))
        code = mwparserfromhell.parse(text, skip_style_tags=True)
        shown = tags.BRACKETS.sub(
            "", self._shown(code.nodes)
        )  # What the parser did not take for a template or link.
        return mended(shown)

    # -- before parsing

    def _without_templates(self, text: str) -> str:
        """Without the templates that show nothing here: most of an article, so the parser does not meet them."""
        kept: list[str] = []
        depth = begun = last = 0
        for match in _BRACES.finditer(text):
            if match[0] == "{{":
                begun = begun if depth else match.start()
                depth += 1
            elif depth == 1:
                depth = 0
                name = _normal(_NAME.match(text, begun + 2, match.start())[0])  # type: ignore[index]
                if not self._known(name):
                    kept.append(text[last:begun])
                    before = "".join(kept[-4:]).rpartition("\n")[2]
                    after = text[match.end() : match.end() + 200].partition("\n")[0]
                    self._leave_out(name, _is_text(before) or _is_text(after.partition("{{")[0]))
                    kept.append(HIDDEN)
                    last = match.end()
            elif depth:
                depth -= 1
        return "".join([*kept, text[last:]])

    def _known(self, name: str) -> bool:
        """Whether a template shows something, or can not be told by its beginning."""
        return name in RENDERS or name == "pagename" or "{{" in name or name.partition(":")[0] in _FUNCTIONS

    def _leave_out(self, name: str, inline: bool, known: bool = False) -> None:
        """Count a template that shows nothing here."""
        if not inline:
            kind = "templates beside the text"
        elif known or name in _SILENT_NAMES or name.startswith(_SILENT) or _ICON.fullmatch(name):
            kind = "notes and sources in templates"
        else:
            kind = f"template {name.partition(':')[0][:60]}"
        self.dropped[kind] += 1

    # -- nodes

    def _shown(self, nodes: Iterable[Any]) -> str:
        """What the nodes show; "" of one that shows nothing, and a mark in its place."""
        found: list[str] = []
        nodes = list(nodes)
        for index, node in enumerate(nodes):
            if isinstance(node, mwparserfromhell.nodes.Template):
                line = "".join(found[-4:]).rpartition("\n")[2]
                found.append(self._template(node, line, nodes[index + 1 : index + 3]))
            else:
                found.append(self._node(node))
        return "".join(found)

    def _node(self, node: Any) -> str:
        nodes = mwparserfromhell.nodes
        if isinstance(node, nodes.Text):
            return str(node.value)
        if isinstance(node, nodes.Wikilink):
            return self._link(node)
        if isinstance(node, nodes.ExternalLink):
            return self._inner(node.title) if node.title is not None else HIDDEN
        if isinstance(node, nodes.Heading):
            title = self._inner(node.title).replace(HIDDEN, "").strip().rstrip(".")
            return f"\n{HEADING}{node.level}{title}.\n" if title else "\n"
        if isinstance(node, nodes.Tag):  # A rule, or a list mark inside an argument; HTML has been taken off.
            return self._inner(node.contents) if node.contents is not None else ""
        if isinstance(node, nodes.HTMLEntity):  # One that is none.
            return str(node)
        return HIDDEN

    def _inner(self, code: Any) -> str:
        return self._shown(code.nodes)

    def _link(self, node: Any) -> str:
        title = str(node.title)
        prefix, colon, _ = title.partition(":")
        if colon and not title.lstrip().startswith(":"):
            kind = self._hidden.get(_normal(prefix)) or ("images" if _FILE_NAME.match(title) else "")
            if not kind and prefix.strip() in _LANGUAGES:
                kind = "links to other languages"
            if kind:
                self.dropped[kind] += 1
                return HIDDEN
        shown = (
            self._inner(node.text)
            if node.text is not None
            else self._inner(node.title).strip().removeprefix(":")
        )
        return shown if shown.strip() else HIDDEN

    def _template(self, node: Any, line: str, after: list[Any]) -> str:
        """What a template shows, given the line before it and the nodes after it."""
        name, rest = self._name(node)
        render = RENDERS.get(name)
        aside = name in _SOUNDS and line.rfind("(") > line.rfind(")")  # How the subject is pronounced.
        if render is not None and not aside:
            shown = render(self._arguments(node, rest))
            if shown:
                return shown
        elif name == "pagename":
            return self._title
        self._leave_out(name, _is_text(line) or _begins_with_text(after), known=render is not None)
        return HIDDEN

    def _name(self, node: Any) -> tuple[str, str | None]:
        """(normal name, what follows the colon of a parser function) of {{Name|...}} or {{name:rest|...}}."""
        name = self._inner(node.name).replace(HIDDEN, "")
        before, colon, rest = name.partition(":")
        if colon and _normal(before) in _FUNCTIONS:
            return _normal(before), rest
        return _normal(before if colon and before.strip().startswith("#") else name), None

    def _arguments(self, node: Any, first: str | None) -> Arguments:
        positional: list[str] = [] if first is None else [first]
        named: dict[str, str] = {}
        for parameter in node.params:
            value = self._inner(parameter.value).replace(HIDDEN, "")
            key = self._inner(parameter.name).replace(HIDDEN, "").strip().lower()
            if not parameter.showkey:
                positional.append(value)
            elif key.isdecimal() and 0 < int(key) <= 50:
                positional += [""] * (int(key) - len(positional))
                positional[int(key) - 1] = value
            else:
                named[key] = value
        return Arguments(positional, named, self._language)


def _written(match: re.Match[str]) -> str:
    """What an entity stands for, if that is a character of text; one that is none stays as it is."""
    shown = html.unescape(match[0])
    return (
        match[0].replace("&", LITERAL[ord("&")])
        if shown == match[0]
        else _CONTROL.sub("", shown).translate(LITERAL)
    )


def _is_text(line: str) -> bool:
    return bool(line.strip(" \t*#:;|" + HIDDEN))


def _begins_with_text(after: list[Any]) -> bool:
    """Whether the line goes on with text."""
    for node in after:
        if not isinstance(node, mwparserfromhell.nodes.Text):
            return isinstance(node, mwparserfromhell.nodes.Wikilink)
        rest = str(node.value).partition("\n")
        if rest[0].strip():
            return True
        if rest[1]:
            return False
    return False


def _normal(name: str) -> str:
    """The name of a template or namespace as compared."""
    return " ".join(name.replace("_", " ").split()).lower()
