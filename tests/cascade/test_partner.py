"""Partners: the fact table, another checkpoint with its own tokenizer and cache, and how they are named."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import CONTEXT, make_model, obsessed
from flax import nnx

from lacy_jax.cascade import CheckpointPartner, FactTablePartner, generate, get_partner
from lacy_jax.cascade.partners import checkpoint
from lacy_jax.cascade.partners.base import cut, first_span
from lacy_jax.errors import ConfigError, PartnerError
from lacy_jax.tokenizer import with_specials
from lacy_jax.tokenizer.specials import specials_of

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


def test_the_cache_is_as_long_as_what_is_asked(partner_model, other_tokenizer, world, monkeypatch):
    """It grows with the texts, keeping what it holds; who says how long texts will be has it made once."""
    monkeypatch.setattr(checkpoint, "WIDTH", 16)
    growing = CheckpointPartner(partner_model, other_tokenizer, "word", rows=3)
    told = CheckpointPartner(partner_model, other_tokenizer, "word", rows=3)
    whole = CheckpointPartner(partner_model, other_tokenizer, "word", rows=3)
    told.expect([world.text(0).text[:20]], 40)
    whole.expect([""], 2 * CONTEXT)
    assert growing._cache is None
    assert whole._cache.max_len == CONTEXT  # And never more than the context.
    first, sizes = told._cache.max_len, []
    for length in (10, 20, 40, 80, 160, 320):
        texts = [world.text(i).text[:length] for i in range(3)]
        answers = whole.complete(texts)
        assert growing.complete(texts) == told.complete(texts) == answers
        sizes.append(growing._cache.max_len)
        assert told._cache.max_len == first or length > 80
    assert sizes == sorted(sizes)
    assert sizes[0] < first < CONTEXT == sizes[-1]
    assert growing.tokens_used == told.tokens_used == whole.tokens_used  # Nothing was read twice.


@pytest.mark.parametrize("reach", ["word", "span"])
def test_checkpoint_partner_stops_where_what_was_asked_for_has_ended(
    partner_model, other_tokenizer, world, reach
):
    """The same answers as when all steps are taken, and fewer tokens written."""
    hasty = CheckpointPartner(partner_model, other_tokenizer, reach, rows=8)
    patient = CheckpointPartner(partner_model, other_tokenizer, reach, rows=8)
    never = jnp.zeros(other_tokenizer.vocab_size, bool)
    patient._pieces = dataclasses.replace(patient._pieces, ends=never, closes=never)
    texts = [world.text(i % 20).text[: 20 + 3 * i] for i in range(40)]
    assert hasty.complete(texts) == patient.complete(texts)
    read = sum(len(other_tokenizer.encode(text)) + 1 for text in texts)
    assert hasty.tokens_used - read < 0.8 * (patient.tokens_used - read)


def test_checkpoint_partner_reads_nothing_twice(partner_model, other_tokenizer, world):
    """Asked about some of its texts at a time, in any order, new ones coming in as others end."""
    partner = CheckpointPartner(partner_model, other_tokenizer, "token", rows=6)
    random = np.random.default_rng(0)
    texts = {i: world.text(i).text[:80] for i in range(6)}
    read, count, asked_for = {}, 0, 0
    for round_ in range(60):
        some = random.permutation(list(texts))[: random.integers(1, 7)]
        asked = [texts[i] for i in some]
        asked_for += len(asked)
        for i, text, answer in zip(some, asked, partner.complete(asked), strict=True):
            read[i] = len(other_tokenizer.encode(text)) + 1
            texts[i] = text + answer + (" and he was" if round_ % 2 else " in")
            if len(texts[i]) > 170:
                del texts[i]
                count += read.pop(i)
                texts[i + 6] = world.text(i + 6).text[:80]
    count += sum(read.values())
    assert max(texts) > 12, "texts came and went"
    again = partner.tokens_used - count
    assert 0 <= again < 6 * asked_for, (
        "but for the pieces where the addition begins, and what it wrote in vain"
    )
    assert partner.flops_used > 0


@pytest.mark.parametrize("which", [0, 1])
def test_checkpoint_partner_says_nothing_where_its_model_ends(which, partner_model, other_tokenizer):
    """A model whose head writes nothing but an end, the tokenizer's first or another."""
    own = specials_of(other_tokenizer)
    other_tokenizer = with_specials(other_tokenizer, dataclasses.replace(own, eos=(*own.eos, 300)), "t")
    silent = nnx.clone(partner_model)
    for parameter in (silent.head, silent.final_norm.scale):
        parameter[...] = jnp.zeros_like(parameter[...])
    partner = CheckpointPartner(silent, other_tokenizer, "token", rows=4)
    banned = jnp.ones(other_tokenizer.vocab_size, bool).at[other_tokenizer.eos_ids[which]].set(False)
    partner._pieces = dataclasses.replace(partner._pieces, banned=banned)
    assert partner.complete(["He was", "She"]) == ["", ""]


def test_a_text_ends_at_each_of_its_ends(tokenizer):
    """A second end of a text (Llama 3 has three) is no piece to write on after."""
    several = with_specials(
        tokenizer, dataclasses.replace(specials_of(tokenizer), eos=(tokenizer.eos_id, 300)), "t"
    )
    model, options = obsessed(tokenizer.vocab_size, 300), {"max_new_tokens": 5, "progress": False}
    (alone,), (ends,) = (generate(model, t, ["a"], **options) for t in (tokenizer, several))
    assert (alone.tokens, alone.stopped) == ([300] * 5, "length")
    assert (ends.tokens, ends.stopped, ends.text) == ([], "eos", "")


def test_checkpoint_partner_reads_long_texts_from_their_end(partner_model, other_tokenizer, full_forward):
    """From a place that stays while the text grows by up to half a context, so that little is read again."""
    partner = CheckpointPartner(partner_model, other_tokenizer, "word", rows=4)
    text, windows = "He was born in a town. " * 40, set()
    assert len(other_tokenizer.encode(text)) > 2 * CONTEXT
    partner.complete([text])
    before, steps = partner.tokens_used, 30
    for _ in range(steps):
        text += " and so on"
        ids = partner._read(text)
        assert CONTEXT // 2 - 8 <= len(ids) <= CONTEXT - 8
        windows.add(other_tokenizer.decode(ids)[:20])
        z = full_forward(partner_model, ids)[0][-1].copy()
        z[[other_tokenizer.bos_id, other_tokenizer.pad_id]] = -np.inf
        first = other_tokenizer.decode([*ids, int(z.argmax())])[len(other_tokenizer.decode(ids)) :]
        answer = partner.complete([text])[0]
        assert answer.startswith(first.rstrip("\ufffd")) or int(z.argmax()) == other_tokenizer.eos_id
    grown = len(other_tokenizer.encode(" and so on" * steps))
    assert len(windows) <= 2 + grown // (CONTEXT // 2 - 8)
    assert partner.tokens_used - before < grown + 12 * steps + CONTEXT * len(windows)


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
        pieces = map(other_tokenizer.piece, range(other_tokenizer.vocab_size))
        others = jnp.array([piece not in ("<0xC3>", "<0xA9>") for piece in pieces])
        partner._pieces = dataclasses.replace(partner._pieces, banned=others)
    texts = [world.text(i).text[: 12 + i] for i in range(40)]
    sizes = set()
    for text, answer in zip(texts, partner.complete(texts), strict=True):
        ids, written = [other_tokenizer.bos_id, *other_tokenizer.encode(text)], ""
        while len(ids) < len(other_tokenizer.encode(text)) + 5:
            z = full_forward(partner_model, np.array(ids, np.int32))[0][-1]
            ids.append(int(np.where(partner._pieces.banned, -np.inf, z).argmax()))
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
        ("checkpoint:", {}, "expected one of none, checkpoint:RUN_DIR"),
        ("gpt", {}, "expected one of none, checkpoint:RUN_DIR"),
        ("none", {"reach": "page"}, "partner_reach = 'page'"),
    ],
)
def test_bad_partners_are_refused(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        get_partner(spec, **options)
