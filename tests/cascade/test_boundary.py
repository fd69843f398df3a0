"""Partner text after generated tokens: decode(old + new) == old text + added text, for any text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.tokenizer import Tokenizer

SETTINGS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("abc nö東🎉\n ", max_size=30)


@SETTINGS
@given(old=TEXTS, added=TEXTS)
def test_any_text_is_appended_exactly(tokenizer, old, added):
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(old)])
    new = Boundary(tokenizer).append(ids, added)
    assert tokenizer.decode(np.concatenate([ids, new])) == old + added


@pytest.mark.parametrize("old", ["", "Ada was born"])
def test_special_tokens_before_the_boundary_have_no_text(tokenizer, old):
    ids = np.concatenate([[tokenizer.bos_id, tokenizer.call_id], tokenizer.encode(old), [tokenizer.call_id]])
    new = Boundary.of(tokenizer).append(ids, " in Oslo")
    assert (
        tokenizer.decode(np.concatenate([ids, new])) == tokenizer.decode(tokenizer.encode(old)) + " in Oslo"
    )


@SETTINGS
@given(data=st.data(), added=TEXTS)
def test_any_tokens_can_be_gone_on_from(tokenizer, data, added):
    """A model does not write the segmentation that encoding would: arbitrary pieces, whole characters."""
    boundary = Boundary(tokenizer)
    ids = np.array(data.draw(st.lists(st.integers(3, tokenizer.vocab_size - 1), max_size=12)), np.int32)
    ids = boundary.whole_characters(ids)
    new = boundary.append(ids, added)
    assert tokenizer.decode(np.concatenate([ids, new])) == tokenizer.decode(ids) + added


@SETTINGS
@given(data=st.data())
def test_the_added_text_needs_no_decoding_of_the_whole(tokenizer, data):
    pieces = st.integers(3, tokenizer.vocab_size - 1)
    boundary = Boundary(tokenizer)
    ids = boundary.whole_characters(np.array(data.draw(st.lists(pieces, max_size=60)), np.int32))
    new = np.array(data.draw(st.lists(pieces, max_size=8)), np.int32)
    whole = tokenizer.decode(np.concatenate([ids, new]))
    assert boundary.added_text(ids, new) == whole[len(tokenizer.decode(ids)) :]


def test_a_new_word_gets_the_tokens_that_training_saw(tokenizer, world):
    text = world.text(0).text
    cut = text.index(" ", 60)
    ids = tokenizer.encode(text[:cut])
    new = Boundary(tokenizer).append(ids, text[cut : cut + 40])
    np.testing.assert_array_equal(np.concatenate([ids, new]), tokenizer.encode(text[: cut + 40]))


def test_existing_tokens_stay_where_a_word_goes_on(tokenizer):
    ids = tokenizer.encode("He was bor")
    new = Boundary(tokenizer).append(ids, "n in")
    assert tokenizer.decode(np.concatenate([ids, new])) == "He was born in"


def test_special_and_call_text_stays_text(tokenizer):
    ids = tokenizer.encode("He is")
    new = Boundary(tokenizer).append(ids, " <CALL></s>")
    assert tokenizer.decode(np.concatenate([ids, new])) == "He is <CALL></s>"
    assert not set(new.tolist()) & {tokenizer.call_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}


@pytest.mark.parametrize("added", [" Paris", "ris", " 1984", ".", " and so on", "\nNew line", " Zoë 東京"])
def test_public_tokenizer_with_dummy_prefix(shared_data, added):
    """A Llama-style model adds a space before every text; a continuation must not get one."""
    paths = sorted((shared_data / "tokenizers").rglob("*.model"))
    if not paths:
        pytest.skip("no SentencePiece model in tokenizers/")
    tokenizer = Tokenizer.load(paths[0])
    boundary = Boundary(tokenizer)
    for old in ("She was born in Pa", "She was born in", "In 19", ""):
        ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(old)])
        new = boundary.append(ids, added)
        got = tokenizer.decode(np.concatenate([ids, new]))
        # A normaliser may rewrite whitespace or lose characters; the words must not run together or split.
        if tokenizer.decode(tokenizer.encode(old + added)) == old + added and old:
            assert got == old + added


def test_unfinished_characters_are_cut_off(tokenizer):
    boundary = Boundary(tokenizer)
    ids = boundary._byte_ids[list("aé東🎉".encode())]
    kept = [len(boundary.whole_characters(ids[:n])) for n in range(len(ids) + 1)]
    assert kept == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]


def test_what_does_not_fit_is_cut_between_words(tokenizer):
    """Half a number would be another number. A first word that is longer than the room is cut as it must be."""
    boundary = Boundary(tokenizer)
    ids = tokenizer.encode(" on 18 July 1887, in Genève", continues=True)
    whole = {"", " on", " on 18", " on 18 July", " on 18 July 1887,", " on 18 July 1887, in"}
    first = len(tokenizer.encode(" on", continues=True))
    for room in range(len(ids) + 1):
        kept = boundary.fit(ids, room)
        assert len(kept) <= room
        if room >= first:
            text = tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("x"), *kept])[1:]
            assert text in whole if room < len(ids) else text == " on 18 July 1887, in Genève"
    emoji = tokenizer.encode("🎉🎉", continues=True)
    assert tokenizer.decode(boundary.fit(emoji, len(emoji) - 1)) == "🎉"
