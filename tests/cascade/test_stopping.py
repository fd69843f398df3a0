"""Generation that is stopped, or whose server dies, in real processes: nothing written is lost."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import warm_python
import xla
from cascade_fakes import make_model
from completions_server import CompletionsServer
from flax import nnx

from lacy_jax.cascade import read_generations
from lacy_jax.config import get_default_config
from lacy_jax.export.run_directory import write_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = 6
# Background jobs inherit Ctrl-C ignored, and so would the command.
LACY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lacy_jax.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A run directory with a random model, two texts a batch."""
    model, config = make_model(tokenizer.vocab_size), get_default_config()
    config.model.update(
        {
            "family": "llama",
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 2,
            "d_ff": 64,
            "tie_head": False,
            "max_seq_len": 128,
        }
    )
    config.input.seq_len = 128
    config.generate.update(
        {"gate": "entropy", "budget": 0.4, "batch_size": 2, "num_prompts": PROMPTS, "max_new_tokens": 24}
    )
    folder = tmp_path_factory.mktemp("stopping") / "run"
    folder.mkdir()
    params = nnx.to_pure_dict(nnx.state(model))
    write_run(folder, config, tokenizer, params, step=1)
    return folder


def start(run, out, url, *more):
    command = [
        sys.executable, "-c", LACY, "generate", f"--workdir={run}", f"--out={out}",
        f"--config.generate.partner={url}", "--json", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags()}
    return warm_python.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server():
    """A partner whose attribute `delay_s` says how long it takes."""

    def answer(prompt):
        time.sleep(server.delay_s)
        return f" Answer{len(prompt) % 7} of"

    with CompletionsServer(answer) as server:
        server.delay_s = 0.0
        yield server


def generate(run, out, server):
    """(what it printed, how often it asked), once it has ended well."""
    before = len(server.requests)
    process = start(run, out, server.url)
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(printed), len(server.requests) - before


@pytest.fixture(scope="module")
def whole(run, server, tmp_path_factory):
    """(texts of a generation that nobody stopped, how often it asked)."""
    out = tmp_path_factory.mktemp("whole") / "texts.jsonl"
    result, asked = generate(run, out, server)
    assert result["partner_exchanges"] > 3
    assert 0 < result["partner_seconds"] < result["seconds"]
    return read_generations(out), asked


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_generation_goes_on_where_it_was(run, server, whole, tmp_path, number, status):
    texts, asked = whole
    out, kept = tmp_path / "stopped.jsonl", tmp_path / "stopped.jsonl.partial.jsonl"
    server.delay_s = 0.4  # So that much is left to do when the signal arrives.
    process = start(run, out, server.url)
    wait_for(process, lambda: kept.exists() and kept.read_text().count('"key"') >= 2)
    process.send_signal(number)
    stopped = time.monotonic()
    _, err = process.communicate(timeout=60)
    server.delay_s = 0.0
    assert time.monotonic() - stopped < 20, "a request that is under way is not waited for"
    assert process.returncode == status
    last = err.strip().splitlines()[-1]
    count = int(last.removeprefix("lacy generate: stopped: ").split()[0])
    assert 2 <= count < PROMPTS
    assert last.endswith(f"{count} of {PROMPTS} texts are kept; run the same command again for the others")
    assert "Traceback" not in err
    assert not out.exists()
    _, asked_again = generate(run, out, server)
    assert asked_again < asked
    assert not kept.exists()
    assert read_generations(out) == texts


def test_a_server_that_dies_leaves_the_model_alone(run, tmp_path):
    """A real server process, killed in the middle: the texts are written to their end and say what happened."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from completions_server import CompletionsServer\n"
        "def answer(prompt): time.sleep(0.1); return ' Answer of'\n"
        "with CompletionsServer(answer) as server: print(server.url, flush=True); time.sleep(300)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT / "tests" / "support")], stdout=subprocess.PIPE, text=True
    )
    out = tmp_path / "texts.jsonl"
    process = start(run, out, server.stdout.readline().strip())
    kept = pathlib.Path(f"{out}.partial.jsonl")
    wait_for(process, lambda: kept.exists() and kept.read_text().count('"key"') >= 2)
    server.kill()
    server.communicate()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    texts = read_generations(out)
    assert len(texts) == PROMPTS
    assert all(len(text.tokens) == 24 or text.stopped == "eos" for text in texts)
    assert texts[0].partner_failures == 0
    assert texts[0].calls > 0
    assert "partner given up" in texts[-1].budget_note
    assert np.mean([text.call_share for text in texts[-2:]]) < 0.1
