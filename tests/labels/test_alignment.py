"""Spans to pieces, against a character-by-character reference; on byte fallback, spaces and normalised text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.config import get_default_config
from lacy_jax.corpus.world import World
from lacy_jax.labels import align
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

TEXTS = st.lists(
    st.sampled_from(
        ["Oslo", " was", "  ", " ", "\n", "▁", "é", "日本", "😀", "1984", ". ", "ﬁ", "\u00a0", "<s>"]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=[True, False], ids=["bytes", "no bytes"])
def tokenizer(request) -> Tokenizer:
    config = get_default_config().unlock().tokenizer
    config.vocab_size, config.byte_fallback = 450, request.param
    return Tokenizer.from_bytes(train_tokenizer((World(40).text(i, 0).text for i in range(40)), config))


def reference(spans, starts, ends, text) -> list[bool]:
    """A piece is marked if any of its characters is in a span and is no space."""
    return [
        any(start <= i < end and not text[i].isspace() for i in range(a, b) for start, end in spans)
        for a, b in zip(starts, ends)
    ]


@st.composite
def text_and_spans(draw):
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, list(zip(cuts[::2], cuts[1::2]))


@settings(max_examples=150, deadline=None)
@given(case=text_and_spans())
def test_agrees_with_the_reference(tokenizer, case):
    text, spans = case
    _, starts, ends = tokenizer.encode_with_offsets(text)
    marked = align(spans, starts, ends, text)
    assert marked.dtype == bool
    assert marked.tolist() == reference(spans, starts, ends, text)


@settings(max_examples=100, deadline=None)
@given(case=text_and_spans())
def test_marked_pieces_spell_what_is_marked(tokenizer, case):
    """Of every marked character that is no space, all pieces are marked; no byte of it is lost."""
    text, spans = case
    _, starts, ends = tokenizer.encode_with_offsets(text)
    marked = align(spans, starts, ends, text)
    covered = {i for a, b in zip(starts[marked], ends[marked]) for i in range(a, b)}
    wanted = {i for start, end in spans for i in range(start, end) if not text[i].isspace()}
    assert wanted <= covered


@pytest.mark.parametrize(
    ("text", "span", "marked"),
    [
        ("in Oslo", (3, 7), "▁Oslo"),  # the piece begins with the space before the value
        ("in Oslo", (2, 3), ""),  # the space alone states nothing
        ("in 日本", (3, 5), "日本"),  # three bytes each
        ("in 1984", (3, 7), "1984"),
    ],
)
def test_known_cases(tokenizer, text, span, marked):
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    pieces = ids[align([span], starts, ends, text)]
    got = "".join(tokenizer.piece(int(i)) for i in pieces)
    if "<0x" in got:
        got = tokenizer.decode(pieces)
    assert got.lstrip("▁") == marked.lstrip("▁") or "<unk>" in got


def test_normalised_text_of_a_public_model(shared_data):
    public = Tokenizer.load(shared_data / "tokenizers" / "sentencepiece_cc_all.32000.100extra.model")
    text = "The  ﬁne  Ⅷ Café Möller of  Oslo."
    _, starts, ends = public.encode_with_offsets(text)
    for word in ("ﬁne", "Ⅷ", "Möller", "Oslo"):
        span = (text.index(word), text.index(word) + len(word))
        marked = align([span], starts, ends, text)
        assert marked.any()
        assert marked.tolist() == reference([span], starts, ends, text)


@pytest.mark.parametrize("span", [(-1, 2), (0, 9), (3, 2)])
def test_span_outside_of_the_text(span):
    with pytest.raises(ValueError, match="outside a text of 5"):
        align([span], np.array([0]), np.array([5]), "Oslo.")
