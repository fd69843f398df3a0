"""Joining a job of several processes, from the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import warm_python
import xla

from lacy_jax.errors import ConfigError
from lacy_jax.training.cluster import join_cluster

_JOIN = """
import sys
from lacy_jax.errors import TrainingError
from lacy_jax.training.cluster import join_cluster
try:
    join_cluster(sys.argv[1], timeout_s=int(sys.argv[2]))
except TrainingError as error:
    print("refused:", error)
    sys.exit(0)
import jax
print("joined", jax.process_index(), "of", jax.process_count())
"""


def join(where: str, timeout_s: int = 60) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": xla.flags(), "JAX_PLATFORMS": "cpu"}
    return warm_python.Popen(
        [sys.executable, "-c", _JOIN, where, str(timeout_s)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    "where", ["localhost", "localhost:1,2", "localhost:1,two,0", "host,2,0", "localhost:1,2,2"]
)
def test_an_address_that_is_none_is_refused(where):
    with pytest.raises(ConfigError, match="--distributed="):
        join_cluster(where)


def test_two_processes_join():
    port = free_port()
    processes = [join(f"localhost:{port},2,{i}") for i in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in outputs] == ["joined 0 of 2", "joined 1 of 2"], outputs


def test_an_environment_that_says_nothing_is_one_line():
    out, err = join("auto").communicate(timeout=300)
    assert out.startswith("refused: could not join the job within 60 s"), err
    assert "give --distributed=HOST:PORT,PROCESSES,INDEX" in out
    assert len(out.splitlines()) == 1
