"""Tokenizer files without `transformers`, and byte-level tokenizers behind our interface."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from export_small import TEXTS, tokenizer

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.errors import DataError
from lacy_jax.export import torture
from lacy_jax.export.tokenizer_files import build
from lacy_jax.tokenizer import JsonTokenizer, Specials, Tokenizer
from lacy_jax.tokenizer.json_tokenizer import pack

FIRST = Specials(0, (0,), 0, (0,))


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_ids_are_sentencepieces_over_the_torture_set(byte_fallback):
    ours = tokenizer(byte_fallback)
    backend = build(ours)
    for text in torture.texts() + TEXTS:
        want = ours.encode(text).tolist()
        assert backend.encode(text, add_special_tokens=False).ids == want, text
        assert backend.encode(text).ids == [ours.bos_id, *want], text
        if ours.unk_id not in want:
            assert backend.decode(want) == ours.decode(want), text
    assert backend.token_to_id("<CALL>") == ours.call_id


def test_a_bpe_model_of_sentencepiece():
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=3,
    )
    ours = Tokenizer.from_bytes(out.getvalue())  # With a dummy prefix and merged spaces, as Llama 2 has them.
    backend = build(ours)
    for text in torture.texts() + TEXTS:
        assert backend.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist(), text


@pytest.fixture(scope="module")
def imported(byte_level) -> Tokenizer:
    return Tokenizer.from_bytes(pack(byte_level, FIRST, "tokenizer.json"))


def test_byte_level_keeps_the_contract_of_our_tokenizer(imported, tmp_path):
    assert isinstance(imported, JsonTokenizer)
    assert (imported.vocab_size, imported.call_id, imported.bos_id) == (280, 280, 0)
    for text in torture.texts() + TEXTS:
        ids, starts, ends = imported.encode_with_offsets(text)
        assert imported.decode(ids) == text
        assert imported.bos_id not in ids
        assert "".join(text[a:b] for a, b in dict.fromkeys(zip(starts.tolist(), ends.tolist()))) == text
        joined = np.concatenate([imported.encode(text), imported.encode(text, continues=True)])
        assert imported.decode(joined) == text + text
    imported.save(tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path / "tokenizer.model").hash == imported.hash
    assert pickle.loads(pickle.dumps(imported)).encode("Ada").tolist() == imported.encode("Ada").tolist()
    assert imported.piece(280) == "<CALL>"
    assert imported.piece(int(imported.encode(" ")[0])) == "\u2581"
    with pytest.raises(DataError, match="lone surrogate"):
        imported.encode("a\ud800")


def test_a_partner_can_write_into_byte_level_text(imported):
    boundary = Boundary(imported)
    ids = imported.encode("Émile Zola was")
    added = boundary.append(ids, " born in 巴黎 \U0001f44d")
    assert imported.decode(np.concatenate([ids, added])) == "Émile Zola was born in 巴黎 \U0001f44d"
    assert len(boundary.whole_characters(imported.encode("é")[:1])) == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"model": {"type": "Unigram"}, "decoder": {"type": "Metaspace"}}', "model Unigram and decoder Metaspace"),
        ('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}, "pre_tokenizer": {"add_prefix_space": true}}', "add_prefix"),
        ('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}', "without a ByteLevel pre-tokenizer"),
        ('{"model": {"type": "BPE", "dropout": 0.1}, "decoder": {"type": "ByteLevel"}}', "dropout = 0.1"),
        ('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}, "pre_tokenizer": {"type": "ByteLevel"}}', "not a tokenizer.json"),
        ('{"version": "1.0"}', "it has no model"),
        ("nothing", "not JSON"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused(content, says):
    with pytest.raises(DataError, match=says) as caught:
        Tokenizer.from_bytes(pack(content, FIRST, "folder/tokenizer.json"), "folder/tokenizer.json")
    assert "folder/tokenizer.json" in str(caught.value)


def test_special_ids_outside_the_vocabulary_are_refused(byte_level):
    with pytest.raises(DataError, match="eos id 999 is outside the vocabulary of 280 ids"):
        Tokenizer.from_bytes(pack(byte_level, Specials(0, (0, 999), 0, ()), "x"))
