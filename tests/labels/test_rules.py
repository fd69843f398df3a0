"""The rules on real sentences: parsed by hand, from stored parses, and without a parser."""

from __future__ import annotations

import itertools
import json
import lzma
import time
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, Span

from lacy_jax.corpus.document import Document
from lacy_jax.labels import RuleLabeller, align, label_parse
from lacy_jax.labels.keywords import keyword_rule
from lacy_jax.labels.layout import headings
from lacy_jax.labels.parse import joined, parse_of_doc, parse_of_record
from lacy_jax.tokenizer import Tokenizer

TEXT = (
    "Jay Hayden (born February 9, 1987) is an American actor. He was raised in Malmö, and Hayden left Malmö for "
    'the University of Vermont in 2005. He played "Nobody Knows" on February 12, 1987.'
)
TAGS = (
    "NNP NNP -LRB- VBN NNP CD , CD -RRB- VBZ DT JJ NN . PRP VBD VBN IN NNP , CC NNP VBD NNP IN DT NNP IN NNP IN CD . "
    "PRP VBD `` NN VBZ '' IN NNP CD , CD ."
).split()
ENTITIES = {
    "Jay Hayden": "PERSON",
    "February 9, 1987": "DATE",
    "American": "NORP",
    "Malmö": "GPE",
    "the University of Vermont": "ORG",
    "2005": "DATE",
    "Nobody Knows": "WORK_OF_ART",
    "February 12, 1987": "DATE",
}


def texts_of(text: str, spans) -> list[str]:
    return [text[start:end] for start, end in spans]


def by_hand() -> Doc:
    """What a pipeline would return, without one."""
    doc = spacy.blank("en")(TEXT)
    assert len(doc) == len(TAGS), [token.text for token in doc]
    for token, tag in zip(doc, TAGS):
        token.tag_ = tag
    spans = []
    for surface, label in ENTITIES.items():
        start = -1
        while (start := TEXT.find(surface, start + 1)) >= 0:
            spans.append(doc.char_span(start, start + len(surface), label=label))
    hayden = TEXT.index("Hayden left")
    spans.append(doc.char_span(hayden, hayden + len("Hayden"), label="PERSON"))
    doc.set_ents([span for span in spans if isinstance(span, Span)])
    return doc


def test_full_rules_on_a_doc_made_by_hand():
    labels = label_parse(parse_of_doc(by_hand()), "Jay Hayden")
    assert dict(zip(texts_of(TEXT, labels.factual), labels.reasons)) == {
        "February 9, 1987": "DATE",
        "American": "NORP",
        "actor": "occupation",
        "Malmö": "GPE",  # once
        "University of Vermont": "ORG",  # without its article
        "2005": "DATE",
        "Nobody Knows": "WORK_OF_ART",
        "February 12, 1987": "DATE",  # another day of the same month and year
    }
    words = texts_of(TEXT, labels.nongrammatical)
    assert {"born", "raised", "left", "played"} <= set(words)
    assert not {"He", "was", "in", "and", "actor", "2005"} & set(words)


def test_without_a_title_the_subject_is_new():
    labels = label_parse(parse_of_doc(by_hand()))
    assert texts_of(TEXT, labels.factual)[0] == "Jay Hayden"
    assert texts_of(TEXT, labels.factual).count("Hayden") == 0


RECORD: dict[str, Any] = {
    "text": "Gambling is a crime film directed by Rowland V. Lee in the 2017–18 season.\nCareer.\nIt cost two million.",
    "tok": [
        [0, 8, "NN"], [9, 2, "VBZ"], [12, 1, "DT"], [14, 5, "NN"], [20, 4, "NN"], [25, 8, "VBN"], [34, 2, "IN"],
        [37, 7, "NNP"], [45, 2, "NNP"], [48, 3, "NNP"], [52, 2, "IN"], [55, 3, "DT"], [59, 7, "JJ"], [67, 6, "NN"],
        [73, 1, "."], [74, 1, "_SP"], [75, 6, "NNP"], [81, 1, "."], [82, 1, "_SP"], [83, 2, "PRP"], [86, 4, "VBD"],
        [91, 3, "CD"], [95, 7, "CD"], [102, 1, "."],
    ],
    "ents": [[75, 81, "ORG"]],
    "chunks": [[0, 8], [12, 24], [37, 51], [55, 73], [75, 81], [83, 85]],
}  # fmt: skip


def test_full_rules_on_a_stored_parse():
    """Definition, proper nouns without an entity, a number tagged as adjective; a heading states nothing."""
    labels = label_parse(parse_of_record(RECORD), "Gambling (film)")
    assert list(zip(texts_of(RECORD["text"], labels.factual), labels.reasons)) == [
        ("crime", "definition"),
        ("film", "kind"),
        ("Rowland V. Lee", "noun_chunk"),
        ("2017–18", "number"),
        ("two", "number"),
        ("million", "number"),
    ]


def test_a_text_parsed_in_parts_is_labelled_as_a_whole():
    parse = parse_of_record(RECORD)
    twice = RECORD["text"] + "\n" + RECORD["text"]
    labels = label_parse(joined(twice, [(0, parse), (len(RECORD["text"]) + 1, parse)]), "Gambling")
    assert labels.factual == label_parse(parse, "Gambling").factual  # the second part repeats the first


@pytest.mark.parametrize(
    ("text", "title", "factual"),
    [
        (
            TEXT,
            "Jay Hayden",
            [
                "February 9, 1987",
                "American",
                "actor",
                "Malmö",
                "University of Vermont",
                "2005",
                "Nobody Knows",
                "February 12, 1987",
            ],
        ),
        ("The band toured. Then it rested. In Oslo the band split.", "", ["Oslo"]),
        ("Trained as a nurse, she saw 92 patients for $5 million.", "", ["nurse", "92", "$5", "million"]),
        ('He said "It is late" and wrote “The Late Hour”.', "", ["It is late", "The Late Hour"]),
        ("Career.\nEarly life and education.\nHe won.", "", []),
        ("Hayden met Ann. Hayden's car, Hayden's dog.", "Jay Hayden", ["Ann"]),
        ("", "", []),
        ("   \n ", "", []),
    ],
)
def test_rules_without_a_model(text, title, factual):
    labels = RuleLabeller().label(Document("d", text, title))
    assert texts_of(text, labels.factual) == factual
    assert len(labels.reasons) == len(labels.factual)
    spans = sorted([*labels.factual, *labels.nongrammatical])
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "A" * 10**6, "Aa " * 10**5, "A.B." * 10**5, '"' * 10**5, "1," * 10**5, "日本語" * 10**5, "Ab-" * 10**5,
     "A of the " * 10**5, "May 1 " * 10**5],
    ids=lambda text: text[:4],
)  # fmt: skip
def test_odd_long_texts_take_linear_time(text):
    began = time.process_time()
    RuleLabeller().label(Document("d", text))
    assert time.process_time() - began < 10  # about 1 s; quadratic time would be minutes


# -- calibration on real text --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public(shared_data) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizers" / "sentencepiece_cc_all.32000.100extra.model")


def test_factual_rate_and_agreement_on_parsed_text(shared_data, public):
    """25 % of tokens within 3 points (method.md), on every second text; the model-free rules agree with the full ones."""
    both = full_only = free_only = total = 0
    with lzma.open(shared_data / "labels" / "parsed_valid.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 0, None, 2):
            record = json.loads(line)
            text, title = record["text"], record["title"]
            _, starts, ends = public.encode_with_offsets(text)
            full = align(label_parse(parse_of_record(record), title).factual, starts, ends, text)
            free = align(RuleLabeller().label(Document("d", text, title)).factual, starts, ends, text)
            both += np.sum(full & free)
            full_only += np.sum(full & ~free)
            free_only += np.sum(free & ~full)
            total += len(starts)
    assert (both + full_only) / total == pytest.approx(0.25, abs=0.03)
    assert (both + free_only) / total == pytest.approx(0.25, abs=0.03)
    assert 2 * both / (2 * both + full_only + free_only) >= 0.85


def test_factual_rate_of_biographies(shared_data, public):
    factual = total = 0
    with lzma.open(shared_data / "wiki" / "bios_train.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 1000):
            record = json.loads(line)
            document = Document(record["id"], record["text"], record["title"])
            _, starts, ends = public.encode_with_offsets(document.text)
            factual += align(RuleLabeller().label(document).factual, starts, ends, document.text).sum()
            total += len(starts)
    assert factual / total == pytest.approx(0.25, abs=0.03)


def test_headings_may_have_capitals_and_digits():
    text = (
        "Ada was here.\nWorld War II.\nHe fought.\n1990–1995: Early years.\nU.S. Army.\nShe sang.\nPope Clement beatified him in 1713.\n"
        "Anna Muster\nBen Muster\nEarly life and education\n"
        + "She sang in Oslo and in many other places of the world. "
        * 2
    )
    found = [text[start:end] for start, end in headings(text)]
    assert found == ["World War II.", "1990–1995: Early years.", "U.S. Army.", "Early life and education"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("the country's largest", ""), ("his native country.", ""), ("a country singer", "genre"), ("country and blues", "genre"),
        ("a metal plate", ""), ("a heavy metal band", "genre"), ("on the rock", ""), ("jazz", "genre"),
    ],
)  # fmt: skip
def test_a_keyword_of_several_senses_fires_beside_words_of_its_own(text, rule):
    word = next(name for name in ("country", "metal", "rock", "jazz") if name in text)
    start = text.index(word)
    assert keyword_rule(text, start, start + len(word)) == rule
