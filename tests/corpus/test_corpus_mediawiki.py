"""MediaWiki dumps: which pages are articles, and what of their wikitext is prose."""

from __future__ import annotations

import bz2
import tracemalloc

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus import open_corpus
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


def _revision(id_, timestamp, text, model=""):
    model = f"<model>{model}</model>" if model else ""
    return f"<revision><id>{id_}</id><timestamp>{timestamp}</timestamp>{model}<text>{text}</text></revision>"


def test_the_newest_revision_is_read_whatever_the_order(tmp_path):
    path = tmp_path / "dump.xml"
    revisions = [
        _revision(7, "2020-01-01T00:00:00Z", "Old."),
        _revision(9, "2024-05-01T00:00:00Z", "Newest."),
        _revision(8, "2022-01-01T00:00:00Z", "Middle."),
    ]
    page = "<page><title>Ada</title><ns>0</ns><id>1</id>" + "".join(revisions) + "</page>"
    path.write_text(_dump(page, page.replace("timestamp>", "t>").replace("<id>1</id>", "<id>2</id>")))
    # Without timestamps the ids decide; without either the last in the file.
    assert [(d.id, d.text) for d in _corpus(path)] == [("1", "Newest."), ("2", "Newest.")]


def test_data_and_redirects_in_any_language_are_no_articles(tmp_path):
    path = tmp_path / "dump.xml"
    data = (
        "<page><title>Q1</title><ns>0</ns><id>3</id>" + _revision(1, "2020", '{"a": 1}', "json") + "</page>"
    )
    redirects = [
        _page(k, "R", f"#{word} [[Ada]]")
        for k, word in enumerate(("WEITERLEITUNG", "REDIRECTION", "перенаправление"), 4)
    ]
    path.write_text(_dump(_page(1, "Ada", "Ada was a poet."), data, *redirects))
    assert [d.title for d in _corpus(path)] == ["Ada"]


def test_what_was_left_out_is_counted(tmp_path):
    path = tmp_path / "dump.xml"
    texts = [
        "It cost {{inflation|US|5}} then.&lt;ref&gt;A&lt;/ref&gt;",
        "[[File:A.jpg]]Text, {{inflation|US|6}} more.",
    ]
    path.write_text(_dump(*(_page(k, f"P{k}", text) for k, text in enumerate(texts))))
    corpus = _corpus(path)
    assert [d.text for d in corpus] == ["It cost then.", "Text, more."]
    assert corpus.dropped == {"template inflation": 2, "references": 1, "images": 1}
    assert len(list(corpus)) == 2
    assert corpus.dropped["template inflation"] == 2  # Of the last reading, not of all.


def test_a_history_of_many_revisions_is_not_held(tmp_path):
    def peak(revisions):
        path = tmp_path / f"{revisions}.xml.bz2"
        history = "".join(_revision(k, f"20{k:06}", "word " * 2000) for k in range(revisions))
        path.write_bytes(
            bz2.compress(_dump(f"<page><title>A</title><ns>0</ns><id>1</id>{history}</page>").encode())
        )
        tracemalloc.start()
        assert len(list(_corpus(path))) == 1
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(10), peak(300)
    assert large < small + 1e6


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
