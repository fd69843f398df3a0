"""Tokenizer: exact round trips and offsets, deterministic training, CALL outside of the model, bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.config import get_default_config
from lacy_jax.corpus.world import World
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

TEXTS = [World(60).text(i, 0).text for i in range(60)]
# Spaces, the space sign of SentencePiece, specials spelt out, digits, and characters of one to four bytes.
AWKWARD = [
    " ",
    "  ",
    "▁",
    "\n",
    "\t",
    "\0",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<CALL>",
    "<0x41>",
    "1984",
    "٣",
    "é",
    "é",
]
AWKWARD += ["日本", "😀", "👩‍👩‍👧", "ﬁ", "½", "\ue000", "\ufeff", "born", "The "]
ANY_TEXT = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), max_size=10).map("".join)


def tokenizer_config(**fields):
    config = get_default_config().unlock().tokenizer
    config.vocab_size = 600
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.from_bytes(train_tokenizer(TEXTS, tokenizer_config()))


@pytest.fixture(scope="module")
def public(shared_data) -> Tokenizer:
    """A model made elsewhere: NFKC, merged spaces, dummy prefix, no pad."""
    return Tokenizer.load(shared_data / "tokenizers" / "sentencepiece_cc_all.32000.100extra.model")


def characters_of(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Offsets by brute force, from the pieces' own characters and bytes; for models that keep the text."""
    ids = tokenizer.encode(text)
    spans: list[tuple[int, int]] = []
    at, pending = 0, b""
    for piece in map(tokenizer.piece, ids.tolist()):
        if piece.startswith("<0x") and len(piece) == 6:
            pending += bytes([int(piece[3:5], 16)])
            spans.append((at, at + 1))
            if pending == text[at].encode():
                at, pending = at + 1, b""
        else:
            assert not pending
            assert text[at : at + len(piece)].replace(" ", "▁") == piece
            spans.append((at, at + len(piece)))
            at += len(piece)
    assert at == len(text)
    return spans


# -- text to ids and back -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_every_text_comes_back_with_exact_offsets(trained, text):
    ids, starts, ends = trained.encode_with_offsets(text)
    assert ids.dtype == starts.dtype == ends.dtype == np.int32
    np.testing.assert_array_equal(ids, trained.encode(text))
    assert trained.decode(ids) == text
    assert list(zip(starts.tolist(), ends.tolist())) == characters_of(trained, text)
    special = {trained.bos_id, trained.eos_id, trained.pad_id, trained.unk_id, trained.call_id}
    assert not special & set(ids.tolist())


@settings(max_examples=60, deadline=None)
@given(first=ANY_TEXT, second=ANY_TEXT)
def test_texts_encoded_apart_join_into_one(trained, first, second):
    ids = np.concatenate([trained.encode(first), trained.encode(second, continues=True)])
    assert trained.decode(ids) == first + second


@pytest.mark.parametrize("text", ["", " ", "   ", " a", "a ", "a  b", "\n\n", " \n ", "▁", "▁ ▁a"])
def test_spaces_are_kept(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_digits_stand_alone(trained):
    pieces = [trained.piece(int(i)) for i in trained.encode("born 12 May 1984, aged 7x")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("1219847")
    vocabulary = [trained.piece(i) for i in range(trained.vocab_size)]
    assert not [
        p for p in vocabulary if len(p) > 1 and any(c.isdigit() for c in p) and not p.startswith("<0x")
    ]


def test_decode_drops_call_and_control_ids(trained):
    ids = trained.encode("a name")
    extra = [
        trained.bos_id,
        *ids[:2],
        trained.call_id,
        *ids[2:],
        trained.eos_id,
        trained.pad_id,
        -1,
        trained.total_size,
    ]
    assert trained.decode(extra) == "a name"
    assert trained.decode([]) == ""


def test_ids_and_pieces(trained):
    assert trained.vocab_size == trained.call_id == 600
    assert trained.total_size == 601
    assert [trained.piece(i) for i in (trained.bos_id, trained.eos_id, trained.pad_id, 600)] == [
        "<s>",
        "</s>",
        "<pad>",
        "<CALL>",
    ]
    with pytest.raises(DataError, match="601"):
        trained.piece(601)


def test_same_after_pickle_and_file(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.model")
    for copy in (pickle.loads(pickle.dumps(trained)), Tokenizer.load(tmp_path / "tokenizer.model")):
        assert copy.hash == trained.hash
        np.testing.assert_array_equal(copy.encode(TEXTS[0]), trained.encode(TEXTS[0]))


# -- training -----------------------------------------------------------------------------------------------------


def test_training_gives_the_same_bytes_and_follows_the_texts(trained):
    assert train_tokenizer(iter(TEXTS), tokenizer_config()) == trained.model_bytes
    assert train_tokenizer(TEXTS[:30], tokenizer_config()) != trained.model_bytes
    capped = train_tokenizer(TEXTS, tokenizer_config(max_training_documents=30))
    assert capped == train_tokenizer(TEXTS[:30], tokenizer_config())


def test_a_frequent_word_without_relatives_is_one_piece():
    """SentencePiece alone finds pieces only in what two distinct words share."""
    texts = [f"{text} Then zorp came." for text in TEXTS]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts, tokenizer_config()))
    assert len(tokenizer.encode(" zorp")) == 1


def test_rare_ascii_letters_need_no_bytes():
    texts = [*TEXTS, "@Q"]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts, tokenizer_config()))
    assert [tokenizer.piece(int(i)) for i in tokenizer.encode("Q@")] == ["Q", "@"]


def test_specials_can_be_renamed_or_absent():
    fields = {"bos_piece": "[BOS]", "eos_piece": "[EOS]", "pad_piece": "", "vocab_size": 400}
    tokenizer = Tokenizer.from_bytes(train_tokenizer(TEXTS, tokenizer_config(**fields)))
    assert tokenizer.piece(tokenizer.bos_id) == "[BOS]"
    assert tokenizer.pad_id == tokenizer.eos_id  # never -1
    assert tokenizer.decode(tokenizer.encode("[BOS] a")) == "[BOS] a"


def test_specials_in_the_texts_do_not_become_pieces():
    texts = [f"{text} <s> </s> <unk> <CALL> <0xAB>" for text in TEXTS]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts, tokenizer_config(split_digits=False)))
    ids = tokenizer.encode("a <s> <CALL> <0xAB> <unk>")
    assert not set(ids.tolist()) & {tokenizer.bos_id, tokenizer.unk_id, tokenizer.call_id}
    assert tokenizer.decode(ids) == "a <s> <CALL> <0xAB> <unk>"


def test_text_without_spaces_trains():
    tokenizer = Tokenizer.from_bytes(
        train_tokenizer(["日本語の文章です。" * 3000], tokenizer_config(vocab_size=280))
    )
    assert len(tokenizer.encode("日本語の文章です。")) < 9


# -- a model made elsewhere ---------------------------------------------------------------------------------------


def test_public_model_loads_as_it_is(public):
    assert public.vocab_size == public.call_id == 32_101
    assert min(public.bos_id, public.eos_id, public.pad_id) >= 0
    assert public.decode(public.encode("She was born in Oslo.")) == "She was born in Oslo."
    assert not {public.bos_id, public.eos_id, public.call_id} & set(
        public.encode("a <s> </s> <CALL> b").tolist()
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a ﬁne day", "ﬁne"),
        ("part Ⅷ x", "Ⅷ"),
        ("two   spaces", "spaces"),
        ("café", "café"),
        ("a½b", "½"),
        (" lead", "lead"),
    ],
)
def test_public_model_offsets_point_into_the_original_text(public, text, word):
    """NFKC changes lengths; the pieces that overlap a word still spell it and nothing else but spaces."""
    ids, starts, ends = public.encode_with_offsets(text)
    start = text.index(word)
    inside = (starts < start + len(word)) & (ends > start)
    assert text[starts[inside].min() : ends[inside].max()].strip() == word or word == "½"
    covered = {i for a, b in zip(starts, ends) for i in range(a, b)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered
    assert (np.diff(starts) >= 0).all()
    assert len(ids) == len(starts) == len(ends)


@settings(max_examples=60, deadline=None)
@given(text=ANY_TEXT)
def test_public_model_offsets_stay_in_the_text(public, text):
    _, starts, ends = public.encode_with_offsets(text)
    assert (starts <= ends).all()
    assert (starts >= 0).all()
    assert (ends <= len(text)).all()
    assert (np.diff(starts) >= 0).all()


@pytest.mark.parametrize("second", ["land is far", "1984", "é", ", and", " born"])
def test_public_model_continues_without_a_new_space(public, second):
    ids = np.concatenate([public.encode("In Green"), public.encode(second, continues=True)])
    assert public.decode(ids) == "In Green" + second


# -- bad input ----------------------------------------------------------------------------------------------------


def message(error: pytest.ExceptionInfo[LacyError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_or_bad_model_file(tmp_path):
    with pytest.raises(DataError) as error:
        Tokenizer.load(tmp_path / "none.model")
    assert "none.model" in message(error)
    assert "tokenizer.path" in message(error)
    for content in (b"", b"\0" * 50, b"not a model"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(DataError, match="not a SentencePiece model") as error:
            Tokenizer.load(tmp_path / "bad.model")
        assert "bad.model" in message(error)


def test_damaged_model_is_refused(trained):
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer.from_bytes(trained.model_bytes[:-100])


def test_piece_that_is_no_utf8_is_refused(trained):
    """SentencePiece loads such a model; only reading the piece fails."""
    word = max((trained.piece(i) for i in range(trained.vocab_size)), key=len).encode()
    damaged = trained.model_bytes.replace(word, word[:-1] + b"\xfd")
    assert damaged != trained.model_bytes
    with pytest.raises(DataError, match=r"bad\.model: not a SentencePiece model"):
        Tokenizer.from_bytes(damaged, "bad.model")


@pytest.mark.parametrize("texts", [[], [""], ["   ", "\n"]])
def test_nothing_to_train_on(texts):
    with pytest.raises(DataError, match=r"no text.*corpus\.path") as error:
        train_tokenizer(texts, tokenizer_config())
    message(error)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"vocab_size": 100_000}, r"vocab_size = 100000.*at most \d+"),
        ({"vocab_size": 50}, r"vocab_size = 50.*need \d+"),
        ({"normalization": "nfkd"}, r"normalization = 'nfkd'.*nmt_nfkc"),
    ],
)
def test_config_that_cannot_train(fields, says):
    with pytest.raises(ConfigError, match=says) as error:
        train_tokenizer(TEXTS, tokenizer_config(**fields))
    message(error)


def test_error_of_the_corpus_passes_through():
    def texts():
        yield "a text"
        raise DataError("corpus.jsonl:2: bad record")

    with pytest.raises(DataError, match=r"corpus\.jsonl:2"):
        train_tokenizer(texts(), tokenizer_config())


def test_lone_surrogate_is_named(trained):
    for call in (
        trained.encode,
        trained.encode_with_offsets,
        lambda text: train_tokenizer([text], tokenizer_config()),
    ):
        with pytest.raises(DataError, match="surrogate") as error:
            call("ab\ud800c")
        message(error)
