"""Dumps as wikis write them: German and French ones with their own namespaces, damaged ones, and anything at all."""

from __future__ import annotations

import bz2
import collections
import contextlib
import importlib.util
import itertools
import re
import subprocess
import sys
from xml.sax.saxutils import escape

import mwparserfromhell
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax.config import get_default_config
from lacy_jax.corpus import open_corpus
from lacy_jax.corpus.mediawiki import _parse_page, read_mediawiki
from lacy_jax.corpus.readers import BadRecord
from lacy_jax.corpus.wikitext import Markup
from lacy_jax.corpus.wikitext.markup import RENDERS
from lacy_jax.errors import DataError
from lacy_jax.json_lines import objects

# Names of namespaces as <siteinfo> of enwiki (some of them), dewiki and frwiki lists them.
ENGLISH = {6: "File", 10: "Template", 14: "Category", 828: "Module"}
GERMAN = {
    -2: "Medium", -1: "Spezial", 1: "Diskussion", 2: "Benutzer", 3: "Benutzer Diskussion", 4: "Wikipedia", 5: "Wikipedia Diskussion",
    6: "Datei", 7: "Datei Diskussion", 8: "MediaWiki", 10: "Vorlage", 12: "Hilfe", 14: "Kategorie", 15: "Kategorie Diskussion",
    100: "Portal", 828: "Modul",
}  # fmt: skip
FRENCH = {
    -2: "Média", -1: "Spécial", 1: "Discussion", 2: "Utilisateur", 3: "Discussion utilisateur", 4: "Wikipédia", 6: "Fichier",
    7: "Discussion fichier", 8: "MediaWiki", 10: "Modèle", 12: "Aide", 14: "Catégorie", 15: "Discussion catégorie", 100: "Portail",
    102: "Projet", 104: "Référence", 828: "Module",
}  # fmt: skip

GERMAN_PAGE = """{{Infobox Ort in Deutschland
|Name = Musterstadt
|Höhe = 120
}}
[[Datei:Musterstadt Markt.jpg|mini|Der [[Marktplatz]] von Musterstadt]]
[[Bild:Wappen Musterstadt.svg|100px|rechts]]
'''Musterstadt''' ({{enS|Model Town}}, {{IPA|ˈmʊstɐˌʃtat}}) ist eine [[Gemeinde (Deutschland)|Gemeinde]] im Landkreis [[Beispielkreis]].<ref>{{Internetquelle |url=http://example.org |titel=Zahlen}}</ref> Sie liegt auf {{Höhe|12345|DE-NHN}} und hat {{FormatNum|13204}} Einwohner.

== Geschichte ==
{{Hauptartikel|Geschichte der Stadt Musterstadt}}
Der Ort wurde 1203 als {{lang|la|villa exemplaris}} erwähnt. {{Zitat|Ein feiner Ort.|Autor=Ein Reisender|Quelle=1790}}
Der Film ''[[Tatort: Musterstadt]]'' von 1981 wurde hier gedreht.

== Persönlichkeiten ==
* [[Anna Muster]] (1801–1870), Dichterin
* Max Beispiel (* 3. Mai 1950), Maler

== Weblinks ==
{{Commonscat}}

== Einzelnachweise ==
<references />

{{Normdaten|TYP=g|GND=1234}}
{{SORTIERUNG:Musterstadt}}
[[Kategorie:Gemeinde in Musterland]]
[[Kategorie:Ersterwähnung 1203]]
[[en:Musterstadt]]
"""
GERMAN_TEXT = """Musterstadt (englisch Model Town) ist eine Gemeinde im Landkreis Beispielkreis. Sie liegt auf 12.345 m und hat 13.204 Einwohner.
Geschichte.
Der Ort wurde 1203 als villa exemplaris erwähnt. „Ein feiner Ort.“
Der Film Tatort: Musterstadt von 1981 wurde hier gedreht.
Persönlichkeiten.
Anna Muster (1801–1870), Dichterin
Max Beispiel (* 3. Mai 1950), Maler"""

FRENCH_PAGE = """{{Voir homonymes|Exempleville}}
{{Infobox Commune de France
| nom = Exempleville
}}
'''Exempleville''' est une [[Commune (France)|commune]] française, située à {{unité|12500|m}} de [[Paris]]. Elle comptait {{nombre|3204|habitants}} le {{date|1|janvier|2019}}{{Note|groupe=a|Selon l'INSEE.}}.
[[Fichier:Exempleville - Église.JPG|vignette|L'église, bâtie au {{s-|XIII}}.]]

== Histoire ==
{{Article détaillé|Histoire d'Exempleville}}
Fondée au {{s|XI|e}}, la ville fut brûlée en 1356{{référence nécessaire}}. L'{{lang|en|Example Company}} s'y installa {{citation|pour de bon}} {{refnec|en 1871}}.

== Culture ==
Le roman ''[[Exempleville : une vie]]'' (1902) s'y déroule ; [[Jean Dupont]] y vécut.
<gallery>
Fichier:Mairie.jpg|La mairie
</gallery>

== Notes et références ==
{{Références}}

{{Portail|France}}
[[Catégorie:Commune en France]]
[[catégorie:Exempleville]]
[[de:Exempleville]]
"""
FRENCH_TEXT = """Exempleville est une commune française, située à 12 500 m de Paris. Elle comptait 3204 habitants le 1er janvier 2019.
Histoire.
Fondée au XIe siècle, la ville fut brûlée en 1356. L'Example Company s'y installa « pour de bon » en 1871.
Culture.
Le roman Exempleville : une vie (1902) s'y déroule ; Jean Dupont y vécut."""


def dump(namespaces, *pages, language="en"):
    """The XML of a dump, in the lines that MediaWiki writes; pages are (title, number of the namespace, wikitext)."""
    names = "".join(
        f'      <namespace key="{key}" case="first-letter">{name}</namespace>\n'
        for key, name in namespaces.items()
    )
    head = (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">\n  <siteinfo>\n'
        f"    <sitename>Wikipedia</sitename>\n    <base>https://{language}.wikipedia.org/wiki/Start</base>\n    <namespaces>\n"
        f'{names}      <namespace key="0" case="first-letter" />\n    </namespaces>\n  </siteinfo>\n'
    )
    body = "".join(
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{number}</ns>\n    <id>{place}</id>\n    <revision>\n      <id>{place}</id>\n"
        "      <timestamp>2024-01-01T00:00:00Z</timestamp>\n      <model>wikitext</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="1" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
        for place, (title, number, text) in enumerate(pages, 1)
    )
    return f"{head}{body}</mediawiki>\n"


def _read(path):
    config = get_default_config().corpus
    config.kind, config.path = "mediawiki", str(path)
    corpus = open_corpus(config)
    return list(corpus), corpus.dropped


@pytest.mark.parametrize(
    ("language", "namespaces", "title", "page", "text", "redirect"),
    [
        ("de", GERMAN, "Musterstadt", GERMAN_PAGE, GERMAN_TEXT, "#WEITERLEITUNG [[Musterstadt]]"),
        ("fr", FRENCH, "Exempleville", FRENCH_PAGE, FRENCH_TEXT, "#REDIRECTION [[Exempleville]]"),
    ],
    ids=["de", "fr"],
)
def test_dumps_in_other_languages(tmp_path, language, namespaces, title, page, text, redirect):
    path = tmp_path / "wiki.xml.bz2"
    pages = ((title, 0, page), ("R", 0, redirect), (f"{namespaces[1]}:{title}", 1, "Ist das so?"))
    path.write_bytes(bz2.compress(dump(namespaces, *pages, language=language).encode()))
    documents, dropped = _read(path)
    assert [(d.title, d.text) for d in documents] == [(title, text)]
    assert dropped["images"] == 2 if namespaces is GERMAN else dropped["images"] == 1
    assert dropped["categories"] == 2
    assert dropped["links to other languages"] == 1
    assert not [kind for kind in dropped if kind.startswith("template ")]


def _words(text):
    return re.findall(r"\w{3,}", text)


def _reference(page):
    """What mwparserfromhell's own extractor keeps, without what is no prose for it either."""
    code = mwparserfromhell.parse(
        re.sub(r"(?is)<!--.*?-->|<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", "", page)
    )
    for node in [
        *code.ifilter_tags(matches=lambda n: str(n.tag) in ("table", "gallery", "math", "timeline", "source"))
    ]:
        with contextlib.suppress(ValueError):  # Inside one that is gone.
            code.remove(node)
    for link in [
        *code.ifilter_wikilinks(
            matches=lambda n: re.match(
                r"(?i)(?:file|image|category|datei|bild|kategorie|fichier|catégorie|[a-z-]{2,12}):\S",
                str(n.title),
            )
        )
    ]:
        with contextlib.suppress(ValueError):
            code.remove(link)
    return code.strip_code()


@pytest.mark.parametrize(
    ("namespaces", "page"), [(GERMAN, GERMAN_PAGE), (FRENCH, FRENCH_PAGE)], ids=["de", "fr"]
)
def test_nothing_is_lost_that_another_extractor_keeps(namespaces, page):
    mine = set(_words(Markup(namespaces).prose(page).text))
    headings = {"Weblinks", "Einzelnachweise", "Notes", "références"}  # Of sections with nothing in them.
    assert set(_words(_reference(page))) - mine - headings == set()


PAGES = pytest.mark.parametrize("pages", [12, pytest.param(None, marks=pytest.mark.slow, id="all")])


@PAGES
def test_the_real_dump_loses_nothing_that_another_extractor_keeps(shared_data, pages):
    """It keeps 1.6 % fewer words of 12 pages, since inline templates are nothing to it."""
    path = shared_data / "wiki" / "enwiki_shortened_gensim.xml.bz2"
    records = itertools.islice(read_mediawiki(str(path)), pages)
    lost = kept = extra = 0
    for record in records:
        markup, _, title, wikitext = record.parse.args
        text = markup.prose(wikitext, title).text
        mine, theirs = _words(text), _words(_reference(wikitext))
        count = {word: mine.count(word) for word in set(theirs)}
        lost += sum(max(theirs.count(word) - count[word], 0) for word in count)
        kept += len(theirs)
        extra += len(mine) - len(theirs)
    assert lost / kept < 0.01
    assert extra > 0


def _extracted(path):
    """{title: text} by WikiExtractor, a program of its own (AGPL: it is not asked for by any extra, and run where it is there)."""
    if importlib.util.find_spec("wikiextractor") is None:
        pytest.skip("no WikiExtractor: pip install wikiextractor==3.1.0")
    command = [
        sys.executable,
        "-m",
        "wikiextractor.WikiExtractor",
        "--json",
        "--no-templates",
        "--processes",
        "1",
        "-q",
        "-o",
        "-",
    ]
    done = subprocess.run([*command, str(path)], capture_output=True, timeout=300, check=True)
    rows = [row for _, row in objects(done.stdout.split(b"\n"), "wikiextractor")]
    return {row["title"]: row["text"] for row in rows if row["text"]}


def _lost(ours, theirs):
    """(words of theirs that ours lacks, words of theirs, words that ours has more than theirs)."""
    mine, other = collections.Counter(_words(ours)), collections.Counter(_words(theirs))
    return (other - mine).total(), other.total(), mine.total() - other.total()


@pytest.mark.parametrize(
    ("language", "namespaces", "title", "page"),
    [("de", GERMAN, "Musterstadt", GERMAN_PAGE), ("fr", FRENCH, "Exempleville", FRENCH_PAGE)],
    ids=["de", "fr"],
)
def test_nothing_is_lost_that_a_third_extractor_keeps(tmp_path, language, namespaces, title, page):
    path = tmp_path / "wiki.xml.bz2"
    path.write_bytes(bz2.compress(dump(namespaces, (title, 0, page), language=language).encode()))
    ours = {document.title: document.text for document in _read(path)[0]}
    theirs = _extracted(path)
    assert ours.keys() == theirs.keys() == {title}
    lost, kept, more = _lost(ours[title], theirs[title])
    assert (lost, kept > 15, more > 10) == (0, True, True)


@PAGES
def test_the_real_dump_loses_nothing_that_a_third_extractor_keeps(shared_data, tmp_path, pages):
    """What it keeps beside: captions of images, and what stands between the lines of tables."""
    source = shared_data / "wiki" / "enwiki_shortened_gensim.xml.bz2"
    records = [record.parse.args for record in itertools.islice(read_mediawiki(str(source)), pages)]
    path = tmp_path / "wiki.xml.bz2"
    articles = [(title, 0, wikitext) for _, _, title, wikitext in records]
    path.write_bytes(bz2.compress(dump(ENGLISH, *articles).encode()))
    theirs = _extracted(path)
    found = [_lost(markup.prose(text, title).text, theirs[title]) for markup, _, title, text in records]
    lost, kept, more = map(sum, zip(*found, strict=True))
    assert lost / kept < 0.01
    assert more > 0


def test_a_dump_of_namespaces_with_odd_keys_is_read(tmp_path):
    path = tmp_path / "x.xml"
    text = dump({6: "Datei"}, ("A", 0, "[[Datei:a.jpg]]Text [[x:y]].")).replace('key="6"', 'key="six"')
    path.write_text(text)
    assert _read(path)[0][0].text == "Text x:y."


# -- anything at all ------------------------------------------------------------------------------------------

_MARKUP = st.lists(
    st.sampled_from(
        [
            "{{", "}}", "{{{", "}}}", "[[", "]]", "[", "]", "|", "=", "==", "'''", "''", "\n", " ", "{|", "|}", "|-", "!", "*", "#", ":", ";",
            "<ref>", "</ref>", "<ref", "/>", "<!--", "-->", "<nowiki>", "</nowiki>", "<math>", "</math>", "<table>", "</table>", "<div", ">",
            "&nbsp;", "&#91;", "&#xD800;", "&#1114112;", "&amp", "convert", "lang", "frac", "val", "as of", "cvt", "nihongo", "File:", "Category:",
            "de:", "http://a", "1", "0", "-5", "1/0", "1e999", "km", "ft", "in", "C", "F", "K", "to", "adj=on", "sigfig=0", "round=5", "disp=x", "²", "٣",
            "İ", "ß", "word", "\x00", "\x01", "\ud800", "\r", "\u2028", "__TOC__", "~~~~", "__", "<sup>", "</sup>", "formatnum:", "#if:",
        ]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(_MARKUP | st.text(max_size=200))
@example("{{convert|1/0|km|mi}}")
@example("{{val|1|e=x|u=km}}")
@example("{{convert|9e999|C|F}}")
@example("{{ship|SS}}{{USS}}{{birth date|1|99|x}}{{frac}}{{date}}{{s}}")
def test_any_markup_is_prose_without_marks(wikitext):
    text = Markup({6: "Datei"}).prose(wikitext, "Ada").text
    assert not re.search(r"[\x00-\x08\x0e-\x1f]|\n\n", text)
    assert text == text.strip()
    if "&#" not in wikitext and "<nowiki" not in wikitext:
        assert not re.search(r"\{\{|\}\}|\[\[|\]\]", text)


_ARGUMENTS = st.lists(
    st.sampled_from(
        "1 0 -5 1/0 1+1/2 1e999 999999999999999999999999999999 ² ٣ İ km ft in C K to - by adj=on sigfig=0 sigfig=99 e=5 disp=x 0.0 -0 a u=m 2000".split()
    ),
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(RENDERS)), _ARGUMENTS)
def test_any_arguments_of_a_template_are_text(name, arguments):
    prose = Markup().prose(f"It {{{{{'|'.join([name, *arguments])}}}}} is")
    assert prose.text.startswith("It")
    assert prose.text.endswith("is")


_XML = st.lists(
    st.sampled_from(
        [
            "<mediawiki>", "</mediawiki>", "<page>", "</page>", "<title>A</title>", "<ns>0</ns>", "<ns>x</ns>", "<id>1</id>", "<redirect/>",
            "<revision>", "</revision>", "<text>Ada was a poet.</text>", "<text/>", "<text>{{x}}</text>", "<timestamp>z</timestamp>",
            '<namespace key="6">Datei</namespace>', "<siteinfo>", "</siteinfo>", "<model>json</model>", "&amp;", "&x;", "<", "]]>", "\x00",
            '<?xml version="1.0" encoding="nope"?>', '<?xml version="1.0" encoding="utf-16"?>', "<!DOCTYPE a>", "<a:b/>",
        ]
    ),
    max_size=14,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(data=_XML | st.binary(max_size=80))
@example(dump(GERMAN, ("A", 0, "Text.")).encode("utf-16"))
def test_any_file_is_articles_or_one_clear_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("dump") / "x.xml"
    path.write_bytes(data)
    found, line = value_or_line(_read, path, kinds=(DataError,))
    if found is None:
        assert str(path) in line
    else:
        assert all(document.text.strip() and document.id for document in found[0])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_dump_is_articles_or_one_clear_line(tmp_path_factory, place, byte):
    data = bytearray(dump(FRENCH, ("Exempleville", 0, FRENCH_PAGE)).encode())
    data[place % len(data)] = byte
    path = tmp_path_factory.mktemp("dump") / "x.xml"
    path.write_bytes(data)
    found, line = value_or_line(_read, path, kinds=(DataError,))
    assert str(path) in line if found is None else found[0][0].text


def test_a_lone_surrogate_in_a_page_is_a_bad_record():
    with pytest.raises(BadRecord, match="lone surrogate"):
        _parse_page(Markup(), "1", "A", "Ada \ud800 was.")
