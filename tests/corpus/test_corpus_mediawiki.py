"""MediaWiki dumps: which pages are articles, and what of their wikitext is prose."""

from __future__ import annotations

import bz2
import tracemalloc

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus import open_corpus
from lacy_jax.corpus.mediawiki import plain_text
from lacy_jax.errors import DataError


def _corpus(path, **fields):
    config = get_default_config().corpus
    config.kind, config.path = "mediawiki", str(path)
    for name, value in fields.items():
        config[name] = value
    return open_corpus(config)


def _page(id_, title, text, namespace=0, redirect=""):
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{id_}</id>{redirect}"
        f"<revision><id>9{id_}</id><contributor><id>1</id></contributor><text>{text}</text></revision></page>"
    )


def _dump(*pages):
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>W</sitename></siteinfo>'
    return head + "\n".join(pages) + "</mediawiki>"


def test_articles_only(tmp_path):
    path = tmp_path / "dump.xml"
    path.write_text(
        _dump(
            _page(1, "Ada", "'''Ada''' was a poet."),
            _page(2, "Countess", "#REDIRECT [[Ada]]", redirect='<redirect title="Ada" />'),
            _page(3, "Talk:Ada", "Is this right?", namespace=1),
            _page(4, "Alias", "#redirect [[Ada]]"),
            _page(5, "Only a template", "{{stub}}"),
            _page(6, "Bob &amp; Co", "Bob &amp;amp; Co trade."),
        )
    )
    assert [(d.id, d.title, d.text) for d in _corpus(path)] == [
        ("1", "Ada", "Ada was a poet."),
        ("6", "Bob & Co", "Bob & Co trade."),
    ]


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Paris]], [[France|the country]], [[bird]]s", "Paris, the country, birds"),
        ("A[[File:X.jpg|thumb|A [[cat]] here]] B[[Category:Cats]]", "A B"),
        ("[[de:Katze]]Cat [[:Category:Cats|cats]]", "Cat cats"),
        ("See [http://x.org the site] [http://y.org]", "See the site"),
        (
            "Tours ({{IPA|tuʁ}}) is{{efn|no}} a city.<ref name=a>Book, 1.</ref><ref name=a />",
            "Tours is a city.",
        ),
        ("One<!-- hidden -->\n\n\n\nTwo", "One\nTwo"),
        ("''Iliad'''s fame, '''A''' ''B", "Iliad's fame, A B"),
        ("== Life ==\nBorn.\n== References ==\n{{reflist}}", "Life.\nBorn."),
        ("{| class=x\n| cell\n|}\nProse.", "Prose."),
        ("* first\n** second\n# third", "first\nsecond\nthird"),
        ("5&nbsp;km &ndash; far", "5 km – far"),
        ("__NOTOC__Text<br/>more <math>x^2</math>", "Text\nmore"),
        ("Broken {{template [[link ''x", None),
    ],
)
def test_prose_of_wikitext(wikitext, prose):
    result = plain_text(wikitext)
    if prose is None:
        assert result.startswith("Broken")  # Damaged markup is no reason to stop.
    else:
        assert result == prose


def test_broken_dump_names_file_and_line(tmp_path):
    path = tmp_path / "dump.xml"
    whole = _dump(_page(1, "Ada", "Ada was a poet."), _page(2, "Bob", "Bob was a miller."))
    path.write_text(whole[:-60])
    read = []
    with pytest.raises(DataError) as error:
        read.extend(d.title for d in _corpus(path, on_bad_record="skip"))
    assert f"{path}:2" in str(error.value)
    assert "broken XML after 1 pages" in str(error.value)


def test_file_that_is_no_dump(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text("<html><body/></html>")
    with pytest.raises(DataError, match="is it a MediaWiki XML dump"):
        list(_corpus(path))
    path.write_text("plain")
    with pytest.raises(DataError, match="broken XML"):
        list(_corpus(path))


def test_pages_stream(tmp_path):
    def peak(pages):
        path = tmp_path / f"{pages}.xml.bz2"
        path.write_bytes(
            bz2.compress(_dump(*(_page(k, f"P{k}", "word " * 2000) for k in range(pages))).encode())
        )
        tracemalloc.start()
        # Shard 0 of very many: all pages are read from the XML, one is turned into text.
        assert len(list(_corpus(path).shard(0, 10_000))) == 1
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(20), peak(300)  # 0.2 MB and 3 MB of text
    assert large < small + 1e6


def test_real_dump(shared_data):
    corpus = _corpus(shared_data / "wiki" / "enwiki_shortened_gensim.xml.bz2", max_documents=12)
    documents = {document.title: document for document in corpus}
    assert len(documents) == 12
    assert documents["Anarchism"].id == "12"
    assert documents["Anarchism"].text.startswith("Anarchism is a political philosophy that advocates")
    marks = ("[[", "]]", "{{", "}}", "<ref", "'''", "\n\n", "\x00")
    for document in documents.values():
        assert not [mark for mark in marks if mark in document.text], document.title
