"""The least similarity of a value that a query head asks for: found on held-out text, kept in the index, and what comes of it."""

from __future__ import annotations

import sqlite3

import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import CONTEXT, make_model
from word_encoder import WordEncoder

from lacy_jax.cascade import IndexPartner, get_partner, index_writer, least_similarity
from lacy_jax.cascade.dense_index import DATABASE, DenseIndex, head_name
from lacy_jax.cascade.entries import Entry
from lacy_jax.cascade.jobs import introduce
from lacy_jax.cascade.least_similarity import best_threshold, find_least
from lacy_jax.cascade.partners.metering import MeteredPartner
from lacy_jax.dataset.query_links import QUERY_ENTRY
from lacy_jax.dataset.records import Record
from lacy_jax.errors import ConfigError, DataError

pytest.importorskip("usearch", reason="no usearch: pip install 'lacy_jax[index]'")


@pytest.mark.parametrize(
    ("right", "idle", "best"),
    [
        ([0.8, 0.9], [0.1, 0.2], 0.8),  # They lie apart.
        ([0.3, 0.8, 0.9], [0.5, 0.6, 0.7, 0.1], 0.8),  # A third of the one for three quarters of the other.
        ([0.3, 0.4], [0.9, 0.95], 0.3),  # Nothing to gain.
        ([0.5], [], 0.5),
    ],
)
def test_the_threshold_takes_most_of_both(right, idle, best):
    similar = np.array([*right, *idle, 0.99])
    kinds = np.array(
        [0] * len(right) + [1] * len(idle) + [2]
    )  # The last one is asked for and answered wrong.
    assert best_threshold(similar, kinds == 0, kinds == 1) == best


@pytest.fixture
def facts(tmp_path, world):
    """An index of the world's facts, and its encoder."""
    encoder = WordEncoder(16)
    entries = [Entry(name, attribute, value=value) for name, attribute, value in world.table()]
    index_writer.build(tmp_path / "facts", entries, encoder)
    return DenseIndex(tmp_path / "facts", encoder)


def records_of(world, tokenizer, people):
    """Biographies as records whose facts are all linked."""
    for at in people:
        text = world.text(at)
        ids, starts, ends = tokenizer.encode_with_offsets(text.text)
        factual = np.array(
            [any(f.start < e and s < f.end for f in text.facts) for s, e in zip(starts, ends, strict=True)]
        )
        tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32)
        factual = np.array([False, *factual, False])
        yield Record(tokens, {"factual": factual, QUERY_ENTRY: factual.astype(np.int32)}, title=text.title)


def test_places_are_where_facts_begin_and_others_near_a_call(facts, world, tokenizer):
    model = make_model(tokenizer.vocab_size, query_dim=16)
    records = list(records_of(world, tokenizer, range(4)))
    places = least_similarity._places(model, tokenizer, records, 1000)
    asked, idle = ([p for p in places if bool(p.value) == kind] for kind in (True, False))
    assert len(asked) == len(idle) > 12
    for place in asked:
        person = world.subject(place.text)
        assert place.value in person.attributes.values()
        assert world.complete(place.text).strip() == place.value
    assert any(place.text.endswith(" ") for place in asked)  # Before a digit.
    assert all(world.complete(place.text) is None for place in idle)
    texts = [tokenizer.decode(record.tokens) for record in records]
    for place in places[:: len(places) // 6]:
        row = next(at for at, text in enumerate(texts) if text.startswith(place.text))
        ids = records[row].tokens[:CONTEXT]
        hidden = model(ids[None], jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
        queries = np.asarray(model.queries(hidden))[0]
        ends = [n for n in range(1, len(ids) + 1) if tokenizer.decode(ids[:n]) == place.text]
        assert any(np.allclose(queries[end - 1], place.query, atol=1e-3) for end in ends)


def test_what_tells_facts_from_other_places_is_found(facts, world, monkeypatch):
    """A head that asks for the fact where there is one, and for half of it where there is none."""
    encoder, places = facts.encoder, []
    for at in range(8):
        text = world.text(at)
        for fact in text.facts:
            before, asked = (
                text.text[: fact.start].rstrip(),
                encoder.encode([f"{fact.subject}, {fact.attribute.replace('_', ' ')}"])[0],
            )
            away = asked + 1.5 * np.random.default_rng(at).standard_normal(16) / 4
            places += [
                least_similarity._Place(before, asked, fact.value),
                least_similarity._Place(
                    f"{fact.subject} was", (away / np.linalg.norm(away)).astype(np.float32), ""
                ),
            ]
    monkeypatch.setattr(least_similarity, "_places", lambda *args: places)
    found = find_least(facts, None, None, [])
    assert set(found) == {"head", "head_hybrid", "head_of_words"}
    one = found["head_of_words"]
    assert one.right == one.kept == one.asked == len(places) / 2
    assert one.silent == 0
    assert one.silenced == one.idle
    assert 0.8 < one.least <= 1.001
    assert f"silent at {one.idle} instead of 0 of {one.idle} places" in str(one)


def test_too_few_right_answers_give_none(facts, tokenizer, world):
    model = make_model(tokenizer.vocab_size, query_dim=16)
    found = find_least(facts, model, tokenizer, records_of(world, tokenizer, range(1)))
    assert found["head"].least is None
    assert "too few right answers" in str(found["head"])
    with pytest.raises(DataError, match="none of the held-out documents has a span that is linked"):
        find_least(facts, model, tokenizer, [])


def test_the_partner_is_silent_below_what_its_index_keeps_for_the_head(facts, world, tokenizer):
    model, other = (make_model(tokenizer.vocab_size, query_dim=16, seed=seed) for seed in range(2))
    person = world.people[4]
    text, key = f"{person.name} was born in", f"{person.name}, birthplace"
    exact = facts.encoder.encode([key])
    far = exact + 0.25 * np.random.default_rng(0).standard_normal(16).astype(np.float32)
    far /= np.linalg.norm(far)
    similar = float((far @ exact.T).item())
    index_writer.keep_least(
        facts.folder, head_name(model.query_head[...]), {"head_of_words": (1 + similar) / 2}
    )
    answer = f" {person.attributes['birthplace']}"

    def said(partner, of, queries):
        introduce(MeteredPartner(partner), of)
        return partner.complete_by_query([text], queries.astype(np.float32))[0]

    partner = IndexPartner(facts, by="head_of_words")
    assert said(partner, model, exact) == answer
    assert said(partner, model, far) == ""
    assert said(partner, other, far) == answer  # Another head, of which nothing is known.
    assert said(IndexPartner(facts, by="head"), model, far) == answer  # Another search.
    assert said(IndexPartner(facts, by="head_of_words", least=-1.0), model, far) == answer
    assert said(IndexPartner(facts, by="head_of_words", least=0.9999), other, far) == ""
    index_writer.edit(facts.folder, facts.encoder, delete=[(world.people[5].name, "", "")])
    index_writer.compact(facts.folder)
    assert said(partner, model, far) == ""  # It outlives edits.
    index_writer.keep_least(facts.folder, head_name(model.query_head[...]), {"head_of_words": similar - 0.01})
    assert said(partner, model, far) == answer
    with sqlite3.connect(facts.folder / DATABASE) as db:
        db.execute("UPDATE about SET value = '{' WHERE name LIKE 'least%'")
    db.close()
    with pytest.raises(DataError, match="damaged: the least similarity of a query head is no number"):
        said(partner, model, far)


def test_the_spec_names_a_least_similarity(index_folder, word):
    text = "Ada Bell birth place of her mother's"
    for spec, answer in (("", " Oslo"), ("#dense@0.99", ""), ("#dense@-1", " Oslo")):
        partner = get_partner(f"index:{index_folder}{spec}")
        assert partner.complete([text]) == [answer]
        partner.close()
    for least in ("", "much", "1.5", "nan"):
        with pytest.raises(ConfigError, match="after @ expected the least similarity, a number from -1 to 1"):
            get_partner(f"index:{index_folder}#head@{least}")
