"""`lacy train` in processes of its own: started, waited for, and what they wrote."""

from __future__ import annotations

import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import training_small as small
import warm_python
import xla

from lacy_jax.training import read_metrics

HERE = str(pathlib.Path(small.__file__).parent)
TIMINGS = {"tokens_per_s", "mfu", "input_wait_share", "step_s", "goodput"}

EXPERIMENT = """
import os, sys, time
sys.path.insert(0, {here!r})
import training_small as small
from lacy_jax.training import sharding, signals

put = sharding.put_batch
sharding.put_batch = lambda *args: (time.sleep({step_s}), put(*args))[1]
{patch}
if {stop_at}:
    signals.StopRequest.reached = lambda self, step: step == {stop_at}


def get_config(arg=""):
    return small.make_config({dataset!r}, **{fields!r})
"""


def start(
    folder: pathlib.Path,
    dataset: str,
    workdir: pathlib.Path | str,
    *,
    processes: int = 1,
    devices: int = 1,
    step_s: float = 0.0,
    stop_at: int = 0,
    silence: int = 90,
    patch: str = "",
    **fields: object,
) -> list[subprocess.Popen]:
    """`lacy train` in `processes` processes of `devices` simulated devices each; `patch` is code run before."""
    experiment = folder / f"experiment{random.randrange(10**9)}.py"
    experiment.write_text(
        EXPERIMENT.format(
            here=HERE, step_s=step_s, stop_at=stop_at, patch=patch, dataset=dataset, fields=fields
        )
    )
    environment = {**os.environ, "XLA_FLAGS": xla.flags(devices)}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "lacy_jax.cli",
        "train",
        f"--config={experiment}",
        f"--workdir={workdir}",
    ]
    return [
        warm_python.Popen(
            [*command, *([f"--distributed=localhost:{port},{processes},{i}", f"--silence={silence}"] if processes > 1 else [])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> str:
    """Wait for all, which must end well; what the first one printed."""
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs[0][0]


def wait_for(processes: list[subprocess.Popen], what: Callable[[], object]) -> None:
    """Until `what` is true, or a process has ended."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not what():
        if any(process.poll() is not None for process in processes):
            return
        time.sleep(0.01)


def lines(workdir: pathlib.Path | str, split: str = "train") -> list[dict]:
    """The metrics without timings."""
    return [
        {k: v for k, v in line.items() if k not in TIMINGS}
        for line in read_metrics(workdir)
        if line["split"] == split
    ]
