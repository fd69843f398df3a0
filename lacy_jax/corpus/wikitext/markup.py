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

from lacy_jax.corpus.wikitext.templates import RENDERS, Arguments, raised

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
_HIDDEN = "\x01"
"""Stands where something was taken out of a sentence, until its marks and spaces are mended."""
_HEADING = "\x00"
"""Begins the line of a heading, before its level, until empty sections are dropped."""
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
_QUOTES = re.compile(r"'{2,5}")
_POSSESSIVE = re.compile(r"'''(?=s\b)")  # "''Iliad'''s": the end of italics and an apostrophe.
_MAGIC_WORD = re.compile(r"__[^\W\d_a-zà-þß-ÿ](?:[^\W\d_a-zß-öø-ÿ]|_)*__")
_LIST_MARK = re.compile(r"(?m)^[*#:;]+[ \t]*")
_SPACES = re.compile(r"[ \t\xa0]+")
_BLANK_LINES = re.compile(r"\n\s*\n+")
_HIDDEN_RUN = re.compile(rf"{_HIDDEN}(?: ?{_HIDDEN})++")
# Around what was taken out: "Tours ()", "Rand (; born 1905)", "(1905; )", "red, , blue", "the sea ." The quantifiers are
# possessive or bounded: a page may have thousands in a row.
_EMPTIED = re.compile(
    rf" ?[(\[](?:[\s,;:/–]|\bor\b|\band\b)*+{_HIDDEN}(?:[\s,;:/–{_HIDDEN}]|\bor\b|\band\b)*+[)\]]"
)
_OPENED = re.compile(rf"(?<=[(\[])(?: ?{_HIDDEN} ?[,;:]?)++ ?")
_CLOSED = re.compile(rf"(?: ?[,;:]? ?{_HIDDEN}){{1,40}}+ ?(?=[)\]])")
_ENUMERATED = re.compile(rf"[,;] ?{_HIDDEN} ?(?=[,;])")
_BEFORE_MARK = re.compile(rf" ?{_HIDDEN} ?(?=[,.;)\]])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ARGUMENT = re.compile(r"\{\{\{[^{}|]*+\|?([^{}]*+)\}\}\}")
"""An argument of a template, which an article has none of: its default."""
_ODD_BRACES = re.compile(r"(?<!\{)\{(?:\{\{)+(?!\{)")
_OPEN_ADDRESS = re.compile(r"\[(?=(?:[a-z]+:)?//[^\[\]\n]*+(?:[\[\n]|\Z))")
"""The bracket of an external link that has no other."""
_DEEPEST = 30
"""Brackets within brackets that are read."""
_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")
_ALONE = re.compile(r"(?:\{\{|\[\[)(?:[^{}\[\]|\n]{0,200}\|)?|\}\}|\]\]")
"""A bracket without its partner; with the name of a template or link, whose text goes on after a bar."""
_MARKS = "[]{}|'=<>&_~"
_LITERAL = {ord(mark): chr(0x0E + i) for i, mark in enumerate(_MARKS)}
"""Characters that an author has written as entities, so that they are no markup, on their way to the text."""
_WRITTEN = {chr(0x0E + i): mark for i, mark in enumerate(_MARKS)}
_LITERALS = re.compile(f"[{''.join(_WRITTEN)}]")
_TABLE_LINE = re.compile(r"[ \t:*]*(?:\{\|(?!\})|\|\}(?!\}))")


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
        text = self._without_tables(self._without_tags(text))
        text = _ENTITY.sub(_written, _LIST_MARK.sub("", text)).replace("<", _LITERAL[ord("<")])
        if "{{{" in text:
            text = _ODD_BRACES.sub(lambda match: match[0][1:], _ARGUMENT.sub(r"\1", text))
        text = self._without_templates(self._balanced(_OPEN_ADDRESS.sub("", text)))
        code = mwparserfromhell.parse(text, skip_style_tags=True)
        return self._mended(self._shown(code.nodes))

    # -- before parsing

    def _without_tags(self, text: str) -> str:
        """Without comments, without tags whose content is no prose, without the marks of all others."""
        text = _EXTENSION.sub(self._extension, text)
        text = _EXTENSION.sub(self._extension, text)  # <table> within <table>.
        text = _RAISED.sub(lambda match: raised(html.unescape(match[1]).strip()), text)
        return _TAG.sub(lambda match: "\n" if match[2].lower() in _LINE_TAGS else "", text)

    def _extension(self, match: re.Match[str]) -> str:
        if match["literal"] is not None:
            return html.unescape(match["literal"]).translate(_LITERAL)
        if match["tag"] is None:
            return ""
        tag, content = match["tag"].lower(), match["content"] or ""
        if tag == "source" and "inline" not in match["attributes"] and "lang" not in match["attributes"]:
            return content
        if tag in ("syntaxhighlight", "source") and "inline" in match["attributes"]:
            return content.translate(_LITERAL)
        kind = {
            "ref": "references",
            "references": "",
            "math": "formulas",
            "chem": "formulas",
            "ce": "formulas",
            "table": "tables",
        }.get(tag, f"<{tag}>")
        if kind and (content.strip() or kind != "references"):
            self.dropped[kind] += 1
        return _HIDDEN

    def _without_tables(self, text: str) -> str:
        """Without {| ... |}; of one that never ends, without its lines."""
        if "{|" not in text:
            return text
        kept: list[str] = []
        depth = 0
        for line in text.split("\n"):
            mark = _TABLE_LINE.match(line)
            if mark and mark[0].endswith("{|"):
                depth += 1
                self.dropped["tables"] += depth == 1
            elif mark and depth:
                depth -= 1
                if not depth:
                    kept.append(line[mark.end() :])
            elif depth and line.startswith("=") and line.rstrip().endswith("="):
                depth = 0  # A heading: the table was never closed.
                self.dropped["unclosed markup"] += 1
                kept.append(line)
            elif not depth:
                kept.append(line)
        return "\n".join(kept)

    def _balanced(self, text: str) -> str:
        """Without double brackets that are never closed, were never opened or lie too deep: they would hide what follows,
        and parsers need time or stack without end for many of them."""
        opened: list[tuple[str, int]] = []
        alone: list[int] = []
        count = {"{{": 0, "[[": 0}
        for match in _BRACKETS.finditer(text):
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
        self.dropped["unclosed markup"] += len(alone)
        kept, last = [], 0
        for place in sorted(alone):
            kept.append(text[last:place])
            last = _ALONE.match(text, place).end()  # type: ignore[union-attr]
        return "".join([*kept, text[last:]])

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
                    kept.append(_HIDDEN)
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
            return self._inner(node.title) if node.title is not None else _HIDDEN
        if isinstance(node, nodes.Heading):
            title = self._inner(node.title).replace(_HIDDEN, "").strip().rstrip(".")
            return f"\n{_HEADING}{node.level}{title}.\n" if title else "\n"
        if isinstance(node, nodes.Tag):  # A rule, or a list mark inside an argument; HTML has been taken off.
            return self._inner(node.contents) if node.contents is not None else ""
        if isinstance(node, nodes.HTMLEntity):  # One that is none.
            return str(node)
        return _HIDDEN

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
                return _HIDDEN
        shown = (
            self._inner(node.text)
            if node.text is not None
            else self._inner(node.title).strip().removeprefix(":")
        )
        return shown if shown.strip() else _HIDDEN

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
        return _HIDDEN

    def _name(self, node: Any) -> tuple[str, str | None]:
        """(normal name, what follows the colon of a parser function) of {{Name|...}} or {{name:rest|...}}."""
        name = self._inner(node.name).replace(_HIDDEN, "")
        before, colon, rest = name.partition(":")
        if colon and _normal(before) in _FUNCTIONS:
            return _normal(before), rest
        return _normal(before if colon and before.strip().startswith("#") else name), None

    def _arguments(self, node: Any, first: str | None) -> Arguments:
        positional: list[str] = [] if first is None else [first]
        named: dict[str, str] = {}
        for parameter in node.params:
            value = self._inner(parameter.value).replace(_HIDDEN, "")
            key = self._inner(parameter.name).replace(_HIDDEN, "").strip().lower()
            if not parameter.showkey:
                positional.append(value)
            elif key.isdecimal() and 0 < int(key) <= 50:
                positional += [""] * (int(key) - len(positional))
                positional[int(key) - 1] = value
            else:
                named[key] = value
        return Arguments(positional, named, self._language)

    # -- after parsing

    def _mended(self, text: str) -> str:
        """The lines without what the markup leaves behind."""
        text = _BRACKETS.sub("", text)  # What the parser did not take for a template or link.
        text = _QUOTES.sub("", _POSSESSIVE.sub("'", _MAGIC_WORD.sub("", text)))
        text = _HIDDEN_RUN.sub(_HIDDEN, _SPACES.sub(" ", text))
        for pattern in (_EMPTIED, _OPENED, _CLOSED, _ENUMERATED, _BEFORE_MARK):
            text = pattern.sub("", text)
        text = _SPACES.sub(" ", _LITERALS.sub(lambda match: _WRITTEN[match[0]], text.replace(_HIDDEN, "")))
        text = "\n".join(line.strip() for line in text.split("\n"))
        return _drop_empty_sections(_BLANK_LINES.sub("\n", text).strip())


def _written(match: re.Match[str]) -> str:
    """What an entity stands for, if that is a character of text; one that is none stays as it is."""
    shown = html.unescape(match[0])
    return (
        match[0].replace("&", _LITERAL[ord("&")])
        if shown == match[0]
        else _CONTROL.sub("", shown).translate(_LITERAL)
    )


def _is_text(line: str) -> bool:
    return bool(line.strip(" \t*#:;|" + _HIDDEN))


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


def _drop_empty_sections(text: str) -> str:
    """Headings under which nothing is left, subsections included, are dropped."""
    kept: list[str] = []
    below = 0  # The least level that a heading must have to stand over the text seen so far, from below.
    for line in reversed(text.split("\n")):
        if not line.startswith(_HEADING):
            below = 7
            kept.append(line)
        elif int(line[1]) < below:
            below = int(line[1])
            kept.append(line[2:])
    return "\n".join(reversed(kept))
