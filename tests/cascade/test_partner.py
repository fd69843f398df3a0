"""Partners: the fact table, another checkpoint with its own tokenizer and cache, and how they are named."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import CONTEXT, make_model

from lacy_jax.cascade import CheckpointPartner, FactTablePartner, generate, get_partner
from lacy_jax.cascade.partner import cut, first_span
from lacy_jax.errors import ConfigError, PartnerError

# -- the fact table ------------------------------------------------------------------------------------------------


def test_fact_table_states_the_fact_that_is_asked_for(world):
    document = world.text(7)
    partner = FactTablePartner(world)
    for fact in document.facts:
        before = document.text[: fact.start].rstrip()
        answer = partner.complete([before])[0]
        assert (before + answer) == document.text[: fact.end]


def test_fact_table_reach(world):
    document = world.text(7)
    fact = next(f for f in document.facts if f.attribute == "birth_date")
    before = document.text[: fact.start].rstrip()
    day = " " + fact.value.split()[0]
    assert FactTablePartner(world, "token").complete([before]) == [day]
    assert FactTablePartner(world, "word").complete([before]) == [day]
    assert FactTablePartner(world, "span").complete([before]) == [" " + fact.value]


def test_a_wasted_call_returns_ordinary_words(world):
    document = world.text(7)
    partner = FactTablePartner(world)
    facts = [(fact.start - 1, fact.end) for fact in document.facts]
    wasted = 0
    for at in range(20, len(document.text), 7):
        if not any(start - 30 <= at <= end for start, end in facts):
            answer = partner.complete([document.text[:at]])[0]
            wasted += 1
            assert answer.strip()
            assert len(answer.split()) <= 2
            assert not any(fact.value in answer for fact in document.facts)
    assert wasted > 10
    assert partner.complete(["About nobody of this world"])[0].strip()


@pytest.mark.parametrize(
    ("text", "reach", "expected"),
    [
        (" 7 May 1956", "token", " 7"),
        (", which", "token", ","),
        ("field-born man", "word", "field-born"),
        (" St. Ives", "span", " St. Ives"),
        ("", "word", ""),
    ],
)
def test_cut(text, reach, expected):
    assert cut(text, reach) == expected


# -- another checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        (" 7 May 1956 in Paris", " 7 May 1956"),
        (" University of Oxford, where", " University of Oxford"),
        (" Ludwig van Beethoven and", " Ludwig van Beethoven"),
        (" teacher. She", " teacher"),
        ("field, a town", "field"),
        (". He was", "."),
        (" of the", " of"),
        ("", ""),
    ],
)
def test_first_span(text, span):
    assert first_span(text) == span


def greedy_by_full_forward(model, tokenizer, text, count, full_forward):
    """`count` greedy tokens after `text`, each by a whole forward pass."""
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    for _ in range(count):
        z = full_forward(model, np.array(ids, np.int32))[0][-1].copy()
        z[[tokenizer.bos_id, tokenizer.pad_id]] = -np.inf
        ids.append(int(z.argmax()))
    return tokenizer.decode(ids)[len(text) :]


@pytest.fixture(scope="module")
def partner_model(other_tokenizer):
    return make_model(other_tokenizer.vocab_size, seed=11)


def test_checkpoint_partner_writes_what_its_model_would(partner_model, other_tokenizer, world, full_forward):
    """Over several calls: texts that go on (with or without its own words), new texts, more texts than rows."""
    partner = CheckpointPartner(partner_model, other_tokenizer, "word", rows=4)
    texts = [world.text(i).text[: 30 + 5 * i] for i in range(5)]
    for round_ in range(3):
        answers = partner.complete(texts)
        for text, answer in zip(texts, answers):
            expected = greedy_by_full_forward(partner_model, other_tokenizer, text, 8, full_forward)
            assert answer == cut(expected.rstrip("\ufffd"), "word") or other_tokenizer.eos_id in expected
        texts = [t + (a if i % 2 else " and then") for i, (t, a) in enumerate(zip(texts, answers))]
        if round_ == 1:
            texts = [*texts[::-1], "A new text"]


def test_checkpoint_partner_says_nothing_where_its_model_ends(partner_model, other_tokenizer):
    """A model whose head writes nothing but eos."""
    partner = CheckpointPartner(partner_model, other_tokenizer, "token", rows=4)
    head = jnp.zeros_like(partner._state["head"][...])
    partner._state["head"][...] = head
    partner._state["final_norm"]["scale"][...] = jnp.zeros_like(partner._state["final_norm"]["scale"][...])
    partner._banned[:] = True
    partner._banned[other_tokenizer.eos_id] = False
    assert partner.complete(["He was", "She"]) == ["", ""]


def test_checkpoint_partner_reads_long_texts_from_their_end(partner_model, other_tokenizer):
    partner = CheckpointPartner(partner_model, other_tokenizer, "word", rows=4)
    long = "He was born in a town. " * 40
    assert len(other_tokenizer.encode(long)) > CONTEXT
    same_end = "Something else. " * 40 + long
    assert partner.complete([long]) == partner.complete([same_end])


def test_checkpoint_partner_with_another_tokenizer_in_the_cascade(
    model, tokenizer, partner_model, other_tokenizer, world
):
    options = {"max_new_tokens": 64, "batch_size": 4, "progress": False, "gate": "call_prob", "budget": 0.3}
    prompts = [world.prompt(i) for i in range(4)]
    texts = []
    for rows in (4, 3):
        partner = CheckpointPartner(partner_model, other_tokenizer, "word", rows=rows)
        found = generate(model, tokenizer, prompts, partner, **options)
        texts.append([g.text for g in found])
        for g in found:
            ids = [tokenizer.bos_id, *tokenizer.encode(g.prompt), *g.tokens]
            assert tokenizer.decode(ids) == g.prompt + g.text
            assert g.calls > 0 or g.stopped == "eos"
    assert texts[0] == texts[1]


def test_a_context_too_short_to_be_asked_is_refused(other_tokenizer):
    with pytest.raises(PartnerError, match="context of 16 tokens is too short"):
        CheckpointPartner(make_model(other_tokenizer.vocab_size, context=16), other_tokenizer, "span")


@pytest.mark.parametrize("only_bytes", [False, True])
def test_one_token_is_a_whole_character(partner_model, other_tokenizer, world, full_forward, only_bytes):
    """The first greedy token, or as many as its character has bytes, against whole forward passes."""
    partner = CheckpointPartner(partner_model, other_tokenizer, "token", rows=4)
    if only_bytes:  # The two bytes of an e with an acute accent, and nothing that is a character by itself.
        pieces = map(other_tokenizer.piece, range(len(partner._banned)))
        partner._banned[:] = [piece not in ("<0xC3>", "<0xA9>") for piece in pieces]
    texts = [world.text(i).text[: 12 + i] for i in range(40)]
    sizes = set()
    for text, answer in zip(texts, partner.complete(texts), strict=True):
        ids, written = [other_tokenizer.bos_id, *other_tokenizer.encode(text)], ""
        while len(ids) < len(other_tokenizer.encode(text)) + 5:
            z = full_forward(partner_model, np.array(ids, np.int32))[0][-1]
            ids.append(int(np.where(partner._banned, -np.inf, z).argmax()))
            written = other_tokenizer.decode(ids)[len(text) :]
            if written and not written.endswith("\ufffd"):
                break
        assert answer == (written if not written.endswith("\ufffd") else "")
        sizes.add(len(ids) - 1 - len(other_tokenizer.encode(text)))
    assert min(sizes) > 1 if only_bytes else 1 in sizes


# -- names ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Run:
    model: object
    tokenizer: object


def test_get_partner(world, partner_model, other_tokenizer):
    assert get_partner("none") is None
    assert isinstance(get_partner("world", world=world, reach="word"), FactTablePartner)
    opened = []

    def load_run(path):
        opened.append(path)
        return _Run(partner_model, other_tokenizer)

    partner = get_partner("checkpoint:runs/big", load_run=load_run, rows=2)
    assert isinstance(partner, CheckpointPartner)
    assert opened == ["runs/big"]
    assert partner.name == "checkpoint:runs/big"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("world", {}, r"corpus.kind = 'world'"),
        ("checkpoint:runs/a", {}, "cannot be opened here"),
        ("checkpoint:", {}, "expected none, world, checkpoint:RUN_DIR"),
        ("gpt", {}, "expected none, world, checkpoint:RUN_DIR"),
        ("none", {"reach": "page"}, "reach 'page'"),
    ],
)
def test_bad_partners_are_refused(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        get_partner(spec, **options)
