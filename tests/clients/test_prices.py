"""What a job will cost is said before it begins: rather too much than too little."""

from __future__ import annotations

import itertools

import pytest

from lacy_jax.clients.prices import count_tokens
from lacy_jax.corpus.compression import read_lines
from lacy_jax.json_lines import objects
from lacy_jax.labels.judge import excerpts_of, longest_answer
from lacy_jax.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")


@pytest.mark.parametrize("kind", ["GPT-2", "SentencePiece"])
def test_tokens_of_a_judges_questions_are_not_counted_too_low(kind, shared_data):
    """GPT-2 joins digits, the public SentencePiece model does less so; a judge's own tokenizer is not known."""
    folder = shared_data / "tokenizers"
    if kind == "GPT-2":
        files = (str(folder / "gpt2_encoder.json"), str(folder / "gpt2_vocab.bpe"))
        encode = tokenizers.ByteLevelBPETokenizer(*files).encode
    else:
        encode = Tokenizer.load(folder / "sentencepiece_cc_all.32000.100extra.model").encode
    lines = (line for _, line in read_lines(str(shared_data / "wiki" / "general_valid.jsonl.xz")))
    texts = [row["text"] for _, row in objects(itertools.islice(lines, 8), "texts")]
    asked = [excerpt for text in texts for excerpt in excerpts_of(text, 0.15)]
    for parts, most in (
        ([excerpt.prompt for excerpt in asked], 1.6),
        ([longest_answer(excerpt.most, len(excerpt.words)) for excerpt in asked], 2.7),
    ):
        counted, real = sum(map(count_tokens, parts)), sum(len(encode(part)) for part in parts)
        assert 1 <= counted / real < most
