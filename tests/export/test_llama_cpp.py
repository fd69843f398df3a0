"""An exported GGUF file read by llama.cpp: the same ids of a prompt, and the same greedy token after each of ours.

LACY_LLAMA_CPP=PYTHON has `llama-cpp-python`. Tokens are compared, not texts: models of random parameters write bytes that
are no characters, which each side shows in its own way. (benchmarks/serve.py compares the texts of a trained model.)
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import numpy as np
import pytest
from export_small import make_config, random_params
from strange_tokenizers import byte_level, sentencepiece_bpe

from lacy_jax.cascade import generate
from lacy_jax.export import check
from lacy_jax.export.gguf_out import export_gguf
from lacy_jax.export.run_directory import write_run
from lacy_jax.export.source import load_source
from lacy_jax.tokenizer import Specials, Tokenizer
from lacy_jax.tokenizer.json_tokenizer import pack

NEW = 24
PROMPTS = ["Ada Byron was", "born in Paris on 3", "Émile Zola wrote"]
KINDS = {
    "sentencepiece": lambda: Tokenizer.from_bytes(sentencepiece_bpe()),
    "byte_level": lambda: Tokenizer.from_bytes(pack(byte_level(), Specials(1, (2, 0), 3, ()), "t")),
}
MODELS = {
    "llama": {"family": "llama", "n_kv_heads": 2, "tie_head": True},
    "gpt2": {"family": "gpt2", "tie_head": True, "d_ff": 128},
}


_TIE = 0.01
"""Logits closer than this may change places: llama.cpp takes tanh-GELU from a table of half precision."""
_THEIRS = """
import json, sys
import llama_cpp
path, asked = sys.argv[1], json.load(sys.stdin)
model = llama_cpp.Llama(path, n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1)
found = []
for prompt, ids in asked:
    model.reset()
    model.eval(ids)
    found.append((model.tokenize(prompt.encode(), add_bos=True), model.scores[: len(ids)].argmax(-1).tolist()))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", MODELS)
def test_llama_cpp_would_write_our_greedy_tokens(family, kind, tmp_path):
    python = os.environ.get("LACY_LLAMA_CPP")
    if not python:
        pytest.skip("LACY_LLAMA_CPP names no interpreter that has llama-cpp-python")
    config, tokenizer = make_config(**MODELS[family]), KINDS[kind]()
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", config, tokenizer, random_params(config, tokenizer.vocab_size))
    source = dataclasses.replace(load_source(tmp_path / "run"), call=False)
    export_gguf(source, tmp_path / "m.gguf")
    ours = generate(source.run.model, tokenizer, PROMPTS, max_new_tokens=NEW, progress=False)
    before = [tokenizer.with_prefix(tokenizer.encode(prompt)).tolist() for prompt in PROMPTS]
    asked = [(text.prompt, ids + text.tokens) for text, ids in zip(ours, before, strict=True)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", _THEIRS, str(tmp_path / "m.gguf")], input=json.dumps(asked), env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    sure = 0
    for text, ids, (their_ids, their_next) in zip(ours, before, json.loads(done.stdout), strict=True):
        assert their_ids == ids
        logits = np.asarray(
            check.logits(source.run.model, np.array([ids + text.tokens]))[0, len(ids) - 1 : -1]
        )
        second, first = np.sort(logits[:, : tokenizer.vocab_size])[:, -2:].T
        clear = first - second > _TIE
        theirs = np.array(their_next[len(ids) - 1 : -1])
        np.testing.assert_array_equal(theirs[clear], np.array(text.tokens)[clear])
        sure += clear.sum()
    assert sure > NEW
