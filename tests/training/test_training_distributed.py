"""Two processes with two devices each train the same run as one process with four."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import training_small as small
import xla

from lacy_jax.training import read_metrics, train

_WORKER = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, sys.argv[1])
import jax
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
import training_small as small
from lacy_jax.training import train
config = small.make_config(sys.argv[4], train__steps=int(sys.argv[6]), train__eval_every=2, mesh__fsdp=2)
print(train(config, sys.argv[5]).summary())
"""


def _start(dataset: str, workdir: pathlib.Path, steps: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = str(pathlib.Path(small.__file__).parent)
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"} | {
        "XLA_FLAGS": xla.flags(devices=2)
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, here, str(port), str(i), dataset, str(workdir), str(steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]


def _finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [out for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_train_the_same_run_and_stop_together(dataset, tmp_path):
    config = small.make_config(dataset, train__steps=5, train__eval_every=2, mesh__fsdp=2)
    train(config, tmp_path / "one", jax.devices()[:4])

    two = tmp_path / "two"
    processes = _start(dataset, two, 200)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not any(line["step"] >= 4 for line in read_metrics(two)):
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # One host is preempted; all must stop at one step.
    outputs = _finish(processes)
    assert all("resumable" in out for out in outputs)
    assert outputs[0].split("saved at step")[1] == outputs[1].split("saved at step")[1]

    one_lines = {(line["step"], line["split"]): line for line in read_metrics(tmp_path / "one")}
    two_lines = {(line["step"], line["split"]): line for line in read_metrics(two)}
    for key in [(1, "train"), (2, "train"), (2, "valid"), (3, "train"), (4, "valid")]:
        for name in ("loss", "n_called", "grad_norm", "nll", "nll_called", "mask_auroc/call_logit"):
            if name in one_lines[key]:
                assert two_lines[key][name] == pytest.approx(one_lines[key][name], rel=1e-3), (key, name)
