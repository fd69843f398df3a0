"""Tokenizers that others made: what one file says and another contradicts, first and last tokens, bytes that are missing."""

from __future__ import annotations

import contextlib
import json
import pickle

import numpy as np
import pytest
import strange_tokenizers as strange
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacy_jax.errors import DataError
from lacy_jax.export import check, torture
from lacy_jax.export.hub_folder import read_tokenizer
from lacy_jax.export.tokenizer_files import write_tokenizer
from lacy_jax.tokenizer import JsonTokenizer, Specials, Tokenizer, with_specials

GONE = (0x04, 0x1D, 0xF1, 0xF2)
"""Of the bytes that SmolLM2's vocabulary lacks."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    "ab é\x04\x1d\U00040000\U0001f44d ", max_size=20
)


def write(folder, config=None, **files):
    """A folder of JSON (or, given bytes or text, other) files: write(f, tokenizer="{..}", generation_config={..})."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / "tokenizer.model").write_bytes(content)
        else:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_tokenizer(folder, {"eos_token_id": 0} if config is None else config)


# -- kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [None, strange.FUSED], ids=["ByteLevel", "fused"])
def test_byte_level_decoders_are_read_as_tokenizers_reads_them(decoder, tmp_path):
    content = strange.byte_level(decoder=decoder)
    ours = write(tmp_path, tokenizer=content)
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.encode_special_tokens = True
    assert isinstance(ours, JsonTokenizer)
    assert not ours.missing
    for text in torture.texts(40):
        ids = theirs.encode(text).ids
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids) == text


@pytest.mark.parametrize(
    ("model", "decoder", "says"),
    [
        ("BPE", strange.LLAMA2, "model BPE and decoder Replace, ByteFallback, Fuse, Strip is not supported"),
        ("BPE", {"type": "BPEDecoder", "suffix": "</w>"}, "model BPE and decoder BPEDecoder"),
        ("BPE", {"type": "Metaspace"}, "model BPE and decoder Metaspace"),
        ("Unigram", {"type": "Metaspace"}, "model Unigram and decoder Metaspace"),
        ("WordPiece", {"type": "WordPiece", "prefix": "##"}, "model WordPiece and decoder WordPiece"),
        ("WordLevel", None, "model WordLevel and decoder None"),
        ("BPE", {"type": "CTC"}, "model BPE and decoder CTC"),
    ],
)
def test_other_kinds_are_refused_by_name(model, decoder, says, tmp_path):
    value = json.loads(strange.byte_level())
    value["model"] = {
        "type": model,
        "vocab": value["model"]["vocab"],
        "merges": [],
        "unk_token": "<|end|>",
        "unk_id": 0,
    }
    if model == "Unigram":
        value["model"]["vocab"] = [["<unk>", 0.0]]
    if model in ("WordPiece", "WordLevel"):
        del value["model"]["merges"]
    value["decoder"], value["added_tokens"] = decoder, []
    with pytest.raises(DataError, match=says) as caught:
        write(tmp_path, tokenizer=value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "decoder", "type", "vocab", "merges", "pre_tokenizer", "added_tokens", "decoders"]), inner, max_size=4), max_leaves=12).map(json.dumps) | st.text(max_size=40))  # fmt: skip
def test_any_tokenizer_json_is_read_or_refused_by_our_error(content):
    from lacy_jax.tokenizer.json_tokenizer import pack

    with contextlib.suppress(DataError):  # Never anything else.
        Tokenizer.from_bytes(pack(content, Specials(0, (0,), 0, ()), "f"), "f")


# -- bytes that are missing ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poor() -> JsonTokenizer:
    from lacy_jax.tokenizer.json_tokenizer import pack

    return Tokenizer.from_bytes(
        pack(strange.byte_level(without=GONE), Specials(0, (0,), 0, ()), "poor"), "poor"
    )


def stood_in(text):
    return "".join("\ufffd" if set(c.encode()) & set(GONE) else c for c in text)


def test_tokenizers_itself_puts_the_end_of_a_text_there():
    theirs = tokenizers.Tokenizer.from_str(strange.byte_level(without=GONE))
    assert theirs.encode("a\x04b").tokens == ["a", "<|endoftext|>", "b"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_no_text_becomes_an_end_of_text(poor, text):
    assert poor.missing == set(GONE)
    assert not poor.byte_fallback
    ids, starts, ends = poor.encode_with_offsets(text)
    assert not set(ids.tolist()) & {0, 1, 2, 3}
    assert poor.decode(ids) == stood_in(text)
    covered = dict.fromkeys(zip(starts.tolist(), ends.tolist(), strict=True))
    assert "".join(text[a:b] for a, b in covered) == text


def test_the_export_of_a_poor_vocabulary_is_the_same_tokenizer(poor, tmp_path):
    write_tokenizer(tmp_path, poor, 64)
    assert "identical on" in check.check_tokenizer(tmp_path, poor)["tokenizer"]
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs("a\x04b\U00040000")["input_ids"] == poor.encode("a\ufffdb\ufffd").tolist()


def test_a_vocabulary_that_lacks_a_tail_byte_and_one_that_can_write_nothing():
    from lacy_jax.tokenizer.json_tokenizer import pack

    special = Specials(0, (0,), 0, ())
    without = (0xA9, 0xBD)  # Of "é" and of U+FFFD itself: the stand-in is then a question mark.
    found = Tokenizer.from_bytes(pack(strange.byte_level(without=without), special, "t"), "t")
    assert found.decode(found.encode("déjà ½ \U0001f3bd vu")) == "d?jà ? ? vu"
    with pytest.raises(DataError, match="cannot write text"):
        Tokenizer.from_bytes(pack(strange.byte_level(without=(0xBD, 0x3F, 0x20)), special, "t"), "t")


# -- what stands first ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [(), ("<|start|>",), ("<|endoftext|>", "<|start|>")], ids=len)
def test_the_first_tokens_are_those_of_the_post_processor(first, tmp_path):
    """Whatever bos config.json names; and the export puts there what the import found."""
    content = strange.byte_level(first=first)
    found = write(tmp_path / "in", {"eos_token_id": 2, "bos_token_id": 3}, tokenizer=content)
    ids = [found._backend.token_to_id(piece) for piece in first]
    assert list(found.prefix) == ids
    own = found.encode("Ada Byron").tolist()
    assert (
        found.with_prefix(own).tolist()
        == [*ids, *own]
        == tokenizers.Tokenizer.from_str(content).encode("Ada Byron").ids
    )
    assert found.with_prefix([]).tolist() == (ids or [3])  # A model needs something to go on from.
    assert np.concatenate([found.with_prefix(own), [2]])[found.body].tolist() == own
    write_tokenizer(tmp_path / "in", found, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "in"))
    assert theirs("Ada Byron")["input_ids"] == [*ids, *own]
    assert check.check_tokenizer(tmp_path / "in", found)


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="ends every text"):
        write(tmp_path, tokenizer=strange.byte_level(first=("<|start|>",), last=("<|end|>",)))


def test_imports_of_before_keep_their_bos():
    """Version 1 of the file said no more than bos, eos and pad: its datasets begin with bos."""
    value = {"lacy_tokenizer": 1, "bos": 1, "eos": 2, "pad": 3, "tokenizer": json.loads(strange.byte_level())}
    found = Tokenizer.from_bytes(json.dumps(value, ensure_ascii=False, sort_keys=True).encode())
    assert (found.prefix, found.eos_ids, found.pad_id) == ((1,), (2,), 3)


# -- where a text ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "named", "ends"),
    [
        ({"eos_token_id": 0}, None, None, (0,)),
        ({"eos_token_id": [2, 0]}, None, None, (2, 0)),
        ({"eos_token_id": 0}, {"eos_token_id": [0, 2]}, None, (0, 2)),
        (
            {"eos_token_id": 0},
            {"eos_token_id": [0, 2]},
            "<|end|>",
            (2, 0),
        ),  # Documents end as the tokenizer says.
        ({"eos_token_id": 2}, {"eos_token_id": 0}, "<|end|>", (0,)),  # As `generate` of transformers.
        ({"eos_token_id": 2}, {"do_sample": True}, None, (2,)),
        ({"bos_token_id": 1}, None, "<|end|>", (2,)),
        ({"bos_token_id": 1}, None, None, (1,)),
    ],
)
def test_ends_are_those_of_transformers(config, generation, named, ends, tmp_path):
    files = {"tokenizer": strange.byte_level()}
    if generation is not None:
        files["generation_config"] = generation
    if named is not None:
        files["tokenizer_config"] = {"eos_token": {"content": named}}
    found = write(tmp_path, config, **files)
    assert found.eos_ids == ends
    assert found.eos_id == ends[0]


def test_special_tokens_that_two_files_contradict_are_named(tmp_path):
    content = strange.byte_level()
    with pytest.raises(DataError, match=r"eos_token '<\|im_end\|>' is not in tokenizer.json"):
        write(tmp_path / "a", tokenizer=content, tokenizer_config={"eos_token": "<|im_end|>"})
    decoder = {"3": {"content": "<|end|>"}}
    with pytest.raises(DataError, match=r"says that '<\|end\|>' is id 3, tokenizer.json that it is 2"):
        write(tmp_path / "b", tokenizer=content, tokenizer_config={"added_tokens_decoder": decoder})
    with pytest.raises(DataError, match="eos id 999 is outside the vocabulary of 290 ids"):
        write(tmp_path / "c", {"eos_token_id": [0, 999]}, tokenizer=content)
    with pytest.raises(DataError, match="no JSON object"):
        write(tmp_path / "d", tokenizer=content, generation_config=[1])


# -- two tokenizers in one folder ----------------------------------------------------------------------------------

TIKTOKEN = b"IQ== 0\nIg== 1\nIw== 2\n"


def test_tiktokens_model_beside_a_good_tokenizer_json(tmp_path):
    found = write(tmp_path, tokenizer=strange.byte_level(), model=TIKTOKEN)
    assert isinstance(found, JsonTokenizer)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        DataError, match=r"not a SentencePiece model .perhaps tiktoken's.: tokenizer.json is needed"
    ):
        read_tokenizer(tmp_path, {})


def test_sentencepiece_beside_its_tokenizer_json(tmp_path):
    """The same pieces: SentencePiece itself is used, with the first tokens and ends that the other files name."""
    model = strange.sentencepiece_bpe()
    alone = write(tmp_path / "alone", {"eos_token_id": 2}, model=model)
    beside = write(
        tmp_path / "beside", {"eos_token_id": 2}, model=model, tokenizer=strange.sentencepiece_json(model)
    )
    assert (
        alone.hash == beside.hash == Tokenizer.from_bytes(model).hash
    )  # Nothing else said: the model as it is.
    bare = strange.sentencepiece_json(model, first=())
    other = write(tmp_path / "other", {"eos_token_id": [2, 9]}, model=model, tokenizer=bare)
    assert (other.prefix, other.eos_ids, other.bos_id) == ((), (2, 9), 1)
    assert other.encode("Ada was").tolist() == alone.encode("Ada was").tolist()
    assert other.decode([9]) == ""
    again = pickle.loads(pickle.dumps(other))
    assert (again.prefix, again.eos_ids, again.hash) == (other.prefix, other.eos_ids, other.hash)
    assert with_specials(other, Specials(1, (2, 9), 2, ()), "x") is other
    write_tokenizer(tmp_path / "other", other, 64)
    assert "identical" in check.check_tokenizer(tmp_path / "other", other)["tokenizer"]
    switched_off = write(tmp_path / "off", {}, model=model, tokenizer_config={"add_bos_token": False})
    assert switched_off.prefix == ()


def test_sentencepiece_and_a_tokenizer_json_that_differ_are_refused(tmp_path):
    model = strange.sentencepiece_bpe()
    value = json.loads(strange.sentencepiece_json(model))
    vocabulary = value["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    with pytest.raises(DataError, match=r"tokenizer.json and tokenizer.model disagree: id 30\d is"):
        write(tmp_path, {"eos_token_id": 2}, model=model, tokenizer=value)
    with pytest.raises(DataError, match="eos id 340 is outside the vocabulary of 340 ids"):
        write(tmp_path / "added", {"eos_token_id": 340}, model=model)
