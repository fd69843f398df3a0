"""Pieces that are parts of characters: where calls may be made, and what the call budget promises there."""

from __future__ import annotations

import codecs

import numpy as np
import pytest
import strange_tokenizers as strange
from cascade_fakes import Scripted, obsessed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacy_jax.cascade import generate
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import slack
from lacy_jax.tokenizer import Specials, Tokenizer
from lacy_jax.tokenizer.json_tokenizer import pack

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text("aé ж東🎉", max_size=20)
CHAIN = (b"\xb6", b"\xd0")
"""A piece that ends one Cyrillic letter and begins the next."""


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """As GPT-2's: lone bytes, and pieces of several bytes that begin, end or both inside a character."""
    more = (b" ", b"\xd0"), CHAIN, (b"\xe6", b"\x9d"), (b"\x9d", b"\xb1"), (b"\xf0", b"\x9f")
    content = strange.with_pieces(strange.byte_level(), *more)
    return Tokenizer.from_bytes(pack(content, Specials(0, (0,), 3, ()), "byte-level"))


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def any_tokenizer(request, tokenizer) -> Tokenizer:
    return tokenizer if request.param == "sentencepiece" else request.getfixturevalue("byte_level")


def needs(boundary, ids):
    """Bytes missing after each token, by the rule of `Boundary`."""
    need, found = 0, []
    for token in ids:
        need = max(need - boundary.tail[token], 0) if boundary.inner[token] else int(boundary.lead[token])
        found.append(int(need))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_lead_and_tail_are_those_of_the_bytes(any_tokenizer, text):
    """Python's own decoder says after each token whether it waits for more of a character."""
    boundary = Boundary(any_tokenizer)
    ids = any_tokenizer.encode(text)
    decoder, waits, written = codecs.getincrementaldecoder("utf-8")(), [], ""
    for token in ids:
        written += decoder.decode(any_tokenizer.piece_bytes(int(token)))
        waits.append(bool(decoder.getstate()[0]))
    assert written == text
    assert [need > 0 for need in needs(boundary, ids)] == waits
    for count in range(len(ids) + 1):
        whole = boundary.whole_characters(ids[:count])
        assert "\ufffd" in text or "\ufffd" not in any_tokenizer.decode(whole)
        assert not any(not wait for wait in waits[len(whole) : count])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=TEXTS, added=TEXTS)
def test_any_text_is_appended_exactly_to_byte_level_text(byte_level, old, added):
    ids = byte_level.with_prefix(byte_level.encode(old))
    new = Boundary(byte_level).append(ids, added)
    assert byte_level.decode(np.concatenate([ids, new])) == old + added


def piece_of(tokenizer, data: bytes) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.piece_bytes(i) == data)


LEAD = b"\xe2"
OPTIONS = {"gate": "call_margin", "max_new_tokens": 240, "progress": False}


def check_bounds(generation, budget, more=0.0):
    """The specification of `budget.py`, with up to 3 b tokens for a character that is waited for, and `more`."""
    partner = np.cumsum([who == "partner" for who in generation.origins])
    n = np.arange(1, len(partner) + 1)
    balance = budget * n - partner
    assert (balance <= np.asarray(slack(n, 3.0)) + 3 * budget + 1e-3).all()
    assert (-balance <= np.asarray(slack(n, 3.0)) + 1e-3).all()
    assert abs(balance[-1]) <= max(1.0, 0.01 * len(n)) + max(3 * budget, more) + 1e-3


@pytest.mark.parametrize("budget", [0.05, 0.22, 0.7, 1.0])
@pytest.mark.parametrize(
    "favourite", [LEAD, b"".join(CHAIN), b"\xf0\x9f"], ids=["lead", "chain", "two of four"]
)
def test_a_model_that_never_ends_a_character_is_called_all_the_same(favourite, budget, byte_level):
    """A lead byte again and again, or a piece that ends one character and begins another: no position is between two."""
    model = obsessed(byte_level.vocab_size, *(piece_of(byte_level, data) for data in (favourite, b"b")))
    partner = Scripted(" x")
    (found,) = generate(model, byte_level, ["a"], partner, **OPTIONS, budget=budget)
    assert found.calls > 0
    check_bounds(found, budget)
    boundary, ids = Boundary(byte_level), np.array(found.tokens)
    need = [0, *needs(boundary, ids)]
    for i, who in enumerate(found.origins):
        if who == "partner":
            assert need[i] == 0
    assert all(not text.endswith("\ufffd") for text in partner.asked)


def test_sentencepiece_models_too(tokenizer):
    (found,) = generate(
        obsessed(tokenizer.vocab_size, piece_of(tokenizer, LEAD)),
        tokenizer,
        ["a"],
        Scripted(" x"),
        **OPTIONS,
        budget=0.22,
    )
    assert found.calls > 0
    check_bounds(found, 0.22)


def test_what_is_written_without_a_partner_stays_the_models_own(byte_level):
    (found,) = generate(
        obsessed(byte_level.vocab_size, piece_of(byte_level, LEAD)), byte_level, ["a"], **OPTIONS
    )
    assert set(found.tokens) == {piece_of(byte_level, LEAD)}


@pytest.mark.parametrize("limit", [20, 50, 51, 52, 53, 100, 240])
@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5])
def test_answers_in_characters_of_several_tokens(limit, budget, byte_level):
    """Cut between characters; what does not fit is not written, and is not called silence."""
    answer = "\U00012345\U00012346"  # Four tokens each.
    partner = Scripted(answer)
    (found,) = generate(
        obsessed(byte_level.vocab_size, piece_of(byte_level, b"b")),
        byte_level,
        ["a"],
        partner,
        **{**OPTIONS, "max_new_tokens": limit},
        budget=budget,
    )
    check_bounds(found, budget, more=3.0)
    assert "\ufffd" not in found.text
    written = "".join(found.text[a:b] for a, b, who in found.spans if who == "partner")
    assert set(written) <= set(answer)
    assert "returned nothing" not in found.budget_note


def test_an_answer_of_which_nothing_fits_is_said_to_be_one(byte_level):
    (found,) = generate(
        obsessed(byte_level.vocab_size, piece_of(byte_level, b"b")), byte_level, ["a"], Scripted("\U00012345"),
        **{**OPTIONS, "max_new_tokens": 3, "tokens_per_call": 1.0}, budget=1.0,
    )  # fmt: skip
    assert found.calls == 0
    assert "not one character fitted" in found.budget_note
