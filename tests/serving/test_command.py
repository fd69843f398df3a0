"""`lacy serve` as a user runs it: the demo in a process of its own, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import urllib3
import warm_python

from lacy_jax import cli
from lacy_jax.cascade.gates import batch_scores
from lacy_jax.serving.command import DEMO
from lacy_jax.serving.demo_scores import STORED, demo_batch
from lacy_jax.training.run import load_run


@pytest.fixture(scope="module")
def demo():
    """(process, address) of `lacy serve --demo`."""
    command = [
        sys.executable,
        "-m",
        "lacy_jax.cli",
        "serve",
        "--demo",
        "--port=0",
        "--config.generate.batch_size=2",
    ]
    environment = {**os.environ, "LACY_SERVE_KEYS": "one-key other-key", "JAX_PLATFORMS": "cpu"}
    process = warm_python.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert "serving lacy-demo with world on http://127.0.0.1:" in line, process.stderr.read()
    yield process, line.split()[5].rstrip("/")
    process.kill()


def test_the_demo_calls_its_partner_for_facts_and_stops_gracefully(demo):
    process, address = demo
    http = urllib3.PoolManager(headers={"Authorization": "Bearer other-key"})
    (prompt, *_) = http.request("GET", f"{address}/lacy/info").json()["examples"]
    body = {"prompt": prompt, "lacy": {}, "seed": 0}
    (choice,) = http.request("POST", f"{address}/v1/completions", json=body).json()["choices"]
    own = choice["lacy"]
    lent = [token["text"] for token in own["tokens"] if token["origin"] == "partner"]
    assert own["calls"] > 2
    assert own["budget_met"], own["budget_note"]
    assert any(text.strip().isdigit() for text in lent), choice["text"]  # Such as the year of a birth.
    # What runs is finished; the process ends by itself, with success.
    found = {}

    def ask():
        answer = http.request(
            "POST",
            f"{address}/v1/completions",
            body=json.dumps({**body, "stream": True}),
            preload_content=False,
        )
        found["begun"].set()
        found["text"] = b"".join(answer.stream()).decode()

    found["begun"] = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    assert found["begun"].wait(60)
    process.send_signal(signal.SIGTERM)
    thread.join(60)
    assert found["text"].endswith("data: [DONE]\n\n")
    assert process.wait(60) == 0
    log = process.stderr.read()
    assert "POST /v1/completions 200" in log
    assert "key" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=RUN is needed, or --demo"),
        (["--demo", "--workdir=here"], "--demo brings its own run"),
        (["--demo", "--port=-1"], "--port=-1: must be at least 0"),
        (["--demo", "--time-limit=0"], "--time-limit=0 must be positive"),
        (["--demo", "--config.generate.gate=vibes"], "expected one of"),
        (["--demo", "--host=256.0.0.1"], "--host=256.0.0.1 --port=8000: "),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, message, capsys):
    assert cli.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]


def test_the_stored_scores_of_the_demo_are_those_of_its_model():
    """If not: `python -m lacy_jax.serving.demo_scores` makes them anew, when the gates or the demo's run have changed."""
    run = load_run(DEMO)
    found = batch_scores(run.model, demo_batch(run))[0]
    np.testing.assert_allclose(np.load(STORED), found, atol=1e-4)


def test_the_demo_is_small_and_names_no_machine():
    files = [file for file in DEMO.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3e6
    config = json.loads((DEMO / "config.json").read_text())
    assert config["dataset"]["path"] == "runs/quickstart/dataset"
    for file in files:
        assert b"/tmp/" not in file.read_bytes(), file
