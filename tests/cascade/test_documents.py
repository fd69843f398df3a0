"""Passages, their index, and extractive answers."""

from __future__ import annotations

import json

import pytest

from lacy_jax.cascade import DocumentPartner, PassageIndex, get_partner
from lacy_jax.cascade.partners.base import first_span
from lacy_jax.cascade.partners.documents import extract
from lacy_jax.cascade.passages import Passage, split_passages
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError

ADA = "Ada Bell (7 May 1956 – 3 June 2001) was a Norwegian chemist. She was born in Oslo. Bell worked at Orkla Works from 1980."
BEA = "Bea Crane was a British painter. She was born in Hull. Crane lived in York with her two dogs."


@pytest.fixture(scope="module")
def index() -> PassageIndex:
    return PassageIndex.build(
        [Document("1", ADA, "Ada Bell"), Document("2", BEA, "Bea Crane")], most_words=12
    )


def test_passages_are_the_text_and_end_with_sentences():
    text = 'Dr. A. One lived 3.5 miles off. He said "Go." Then he left!\nHeading\nLast words'
    parts = list(split_passages(text, 8))
    assert " ".join(parts).split() == text.split()
    assert all(part in text for part in parts)
    assert max(len(part.split()) for part in parts) <= 8
    assert list(split_passages("word " * 30, 8)) == ["word " * 29 + "word"]  # One long sentence stays whole.
    assert list(split_passages(" \n ")) == []


def test_search_finds_by_title_and_text(index):
    passage, score = index.search("where did Crane live", 3)[0]
    assert passage.title == "Bea Crane"
    assert score > 0
    assert index.search("zzz", 3) == []


@pytest.mark.parametrize(
    ("text", "reach", "answer"),
    [
        ("Ada Bell was born in", "span", " Oslo"),
        ("Bea Crane was born in", "span", " Hull"),
        ("Ada Bell (", "span", "7 May 1956"),
        ("Ada Bell (", "word", "7"),
        ("Ada Bell, the chemist, worked at Ork", "token", "la"),
        ("Ada Bell, the chemist, worked at", "span", " Orkla Works"),
        ("Ada Bell was born in ", "span", "Oslo"),
        ("Bea Crane worked at", "span", ""),  # Somebody else's employer is no answer.
        ("Carl Dent was born in", "span", ""),
        ("", "span", ""),
    ],
)
def test_extractive_answers(index, text, reach, answer):
    assert DocumentPartner(index, reach).complete([text]) == [answer]


def test_the_better_passage_wins_where_both_fit():
    passages = [
        Passage("", "He moved to the city of Bergen in winter."),
        Passage("", "At first he moved to the city of Oslo in spring."),
    ]
    assert extract(passages, "Then at first he moved to the city of").strip().startswith("Oslo")
    assert extract(passages, "of") == ""  # A common word is no evidence.


def test_an_index_on_disk_is_the_same_index(index, tmp_path):
    index.save(tmp_path / "index")
    loaded = PassageIndex.load(tmp_path / "index")
    assert loaded.passages == index.passages
    assert loaded.search("born in Oslo", 2) == index.search("born in Oslo", 2)
    with pytest.raises(LacyError, match="it exists"):
        index.save(tmp_path / "index")
    (tmp_path / "index" / "passages.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="missing or damaged"):
        PassageIndex.load(tmp_path / "index")


def test_a_partner_from_a_corpus_file_or_an_index_folder(index, tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text(
        "".join(
            json.dumps({"title": t, "text": x}) + "\n" for t, x in (("Ada Bell", ADA), ("Bea Crane", BEA))
        )
    )
    index.save(tmp_path / "index")
    for where in (file, tmp_path / "index"):
        partner = get_partner(f"documents:{where}")
        assert partner.complete(["Bea Crane was born in"]) == [" Hull"]


def test_bad_corpora_are_named(tmp_path):
    with pytest.raises(DataError, match=r"file not found: .*none\.jsonl"):
        get_partner(f"documents:{tmp_path}/none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"title": "no text"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2 has no field 'text'"):
        get_partner(f"documents:{bad}")
    bad.write_text("\n")
    with pytest.raises(DataError, match="no documents"):
        get_partner(f"documents:{bad}")


@pytest.mark.parametrize(
    ("continuation", "span"),
    [
        (" U.S. Navy from 1980", " U.S. Navy"),
        (" the U.S. He left", " the U.S."),
        (" John F. Kennedy, and", " John F. Kennedy"),
        (" St. Louis in spring", " St. Louis"),
        (" Oslo. She left", " Oslo"),
        (" 7 May 1956 in Paris.", " 7 May 1956"),
    ],
)
def test_the_point_of_an_abbreviation_ends_no_span(continuation, span):
    assert first_span(continuation) == span


def test_letters_whose_case_changes_their_number_shift_no_span():
    passages = [
        Passage("", "At last the traveller reached İİİstanbul Harbour in winter, near Straßendorf Bridge.")
    ]
    assert extract(passages, "At last the traveller reached").startswith(" İİİstanbul Harbour")
    assert extract(passages, "At last the traveller reached İİİstanbul").startswith(" Harbour in")
    assert extract(passages, "last the traveller reached İİİstan", inside_words=True).startswith(
        "bul Harbour"
    )
    assert extract(passages, "harbour in winter, near STRASSEN", inside_words=True).startswith("dorf Bridge")
