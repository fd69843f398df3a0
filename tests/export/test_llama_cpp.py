"""An exported GGUF file in llama.cpp's server: the same greedy texts as ours. LACY_LLAMA_CPP=PYTHON has `llama-cpp-python[server]`."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import time

import pytest
import urllib3
from export_small import make_config, random_params
from strange_tokenizers import byte_level, sentencepiece_bpe

from lacy_jax.cascade import generate
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", MODELS)
def test_llama_cpp_writes_our_greedy_texts(family, kind, tmp_path):
    python = os.environ.get("LACY_LLAMA_CPP")
    if not python:
        pytest.skip("LACY_LLAMA_CPP names no interpreter that has llama-cpp-python[server]")
    config, tokenizer = make_config(**MODELS[family]), KINDS[kind]()
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", config, tokenizer, random_params(config, tokenizer.vocab_size))
    source = dataclasses.replace(load_source(tmp_path / "run"), call=False)
    export_gguf(source, tmp_path / "m.gguf")
    ours = generate(source.run.model, tokenizer, PROMPTS, max_new_tokens=NEW, progress=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", str(tmp_path / "m.gguf"), "--port", str(port), "--n_ctx=64", "--n_threads=1",
               "--type_k=0", "--type_v=0", "--verbose=false"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    try:
        until, address = time.monotonic() + 120, f"http://localhost:{port}/v1"
        while True:
            try:
                urllib3.request("GET", f"{address}/models", retries=False, timeout=5)
                break
            except urllib3.exceptions.HTTPError:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.2)
        for text in ours:
            body = {"prompt": text.prompt, "max_tokens": NEW, "temperature": 0.0}
            found = urllib3.request("POST", f"{address}/completions", json=body).json()["choices"][0]["text"]
            # Up to the first byte that is no character: llama.cpp's server leaves such bytes out, here they are U+FFFD.
            whole, broken, _ = text.text.partition("\ufffd")
            assert found.startswith(whole) if broken else found == whole
    finally:
        process.terminate()
        process.wait()
