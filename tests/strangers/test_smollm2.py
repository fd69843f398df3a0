"""A real trained model of others: SmolLM2-135M-Instruct, from the GGUF file of a package. Skips where that is not installed."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from smollm2 import smollm2

from lacy_jax.cascade import CheckpointPartner
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.export import check, torture
from lacy_jax.export.import_hf import open_folder


@pytest.fixture(scope="module")
def path():
    return smollm2()


@pytest.fixture(scope="module")
def opened(path):
    return open_folder(path)


@pytest.fixture(scope="module")
def theirs(path):
    """transformers' own reading of the file: (model, tokenizer).

    It does not read what cuts a text before BPE (`tokenizer.ggml.pre`) and takes GPT-2's: the one named there is put in,
    as llama.cpp writes it for `smollm`: each number character alone, then GPT-2's.
    """
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    cuts = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = cuts.Sequence(
        [cuts.Split(tokenizers.Regex(r"\p{N}"), "isolated"), cuts.ByteLevel(add_prefix_space=False)]
    )
    return model.eval(), tokenizer


def test_the_logits_are_those_of_transformers(opened, theirs):
    """Of -26 to 39, where float32 differs from float64 by more than any absolute tolerance for toys allows."""
    tokens = check.sample_tokens(opened.tokenizer, 24)[[0, -1]]
    with torch.inference_mode():
        want = theirs[0](torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    got = check.logits(opened.model, tokens)[..., :-1]
    difference, scale = check.compare(got, want, check.TOLERANCE, "SmolLM2")
    assert scale > 20
    assert difference < check.TOLERANCE * scale


def test_the_tokenizer_is_the_one_of_transformers(opened, theirs):
    ours, other = opened.tokenizer, theirs[1]
    assert ours.prefix == ()  # The file says no bos, and names one all the same.
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))
    assert other.bos_token_id == 1
    assert {0x04, 0xF1, 0xF2} <= ours.missing
    same = 0
    for text in torture.texts(40):
        ids = ours.encode(text)
        assert ours.decode(ids) == "".join("\ufffd" if set(c.encode()) & ours.missing else c for c in text)
        if not any(set(c.encode()) & ours.missing for c in text):
            assert ids.tolist() == other(text, split_special_tokens=True)["input_ids"]
            same += 1
    assert same > 60
    assert ours.encode("a\x04<|endoftext|>").tolist()[1] == ours.encode("\ufffd").tolist()[0]
    assert not set(ours.encode("<|im_end|>\x04\U00040000").tolist()) & set(range(17))


def test_pieces_that_are_parts_of_characters(opened):
    boundary = Boundary(opened.tokenizer)
    parts = (boundary.lead > 0) | (boundary.tail > 0)
    assert parts.sum() == 313
    ids = opened.tokenizer.encode("東京 🎉 born")
    kept = [opened.tokenizer.decode(boundary.whole_characters(ids[:n])) for n in range(len(ids) + 1)]
    assert not any("\ufffd" in text for text in kept)


def test_it_is_a_partner_that_writes_what_transformers_writes(opened, theirs):
    partner = CheckpointPartner(opened.model, opened.tokenizer, "word", rows=2)
    assert partner.cfg.max_seq_len == 8192
    texts = ["The capital of France is", "Marie Curie was born in the city of"]
    answers = partner.complete(texts)
    assert partner._cache.max_len == 256  # Not the whole context: what is asked for.
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([theirs[1](text)["input_ids"]])
        with torch.inference_mode():
            out = theirs[0].generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert theirs[1].decode(out).startswith(answer)
    assert answers[0] == " Paris."


def test_an_empty_text_begins_with_bos(opened):
    assert opened.tokenizer.with_prefix([]).tolist() == [1]
    np.testing.assert_array_equal(opened.tokenizer.with_prefix([5, 6]), [5, 6])
