"""Checkpoints in the memory of the hosts, of two real processes; each has a folder of its own in place of a host's memory."""

from __future__ import annotations

import re
import shutil

import pytest
import training_small as small
from training_processes import finish, lines, start, wait_for

from lacy_jax.config import validate
from lacy_jax.errors import ConfigError
from lacy_jax.training import train
from lacy_jax.training.checkpoint import Checkpointer

_OWN_MEMORY = """
import jax
from lacy_jax.training import ram_checkpoint
begin = ram_checkpoint.RamCheckpointer.__init__
def with_own_memory(self, config, workdir, mesh):
    config = config.copy_and_resolve_references()
    config.checkpoint.ram += f"/{jax.process_index()}"
    begin(self, config, workdir, mesh)
ram_checkpoint.RamCheckpointer.__init__ = with_own_memory
"""
STEPS = 24


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_killed_run_goes_on_from_memory_and_from_storage_when_a_host_is_lost(dataset, tmp_path, whole):
    """The only checkpoint on storage is the one at the end, so what is resumed comes from memory; `whole`: bit for bit, and
    another run, or one that has lost a host's memory, leaves it alone."""
    fields = {
        "processes": 2,
        "devices": 2,
        "mesh__fsdp": 2,
        "train__steps": STEPS,
        "train__eval_every": 0,
        "checkpoint__every": 5000,
    }
    ram = {"patch": _OWN_MEMORY, "checkpoint__ram": str(tmp_path / "ram"), "checkpoint__ram_every": 4}
    run = tmp_path / "run"

    def killed_at(count: int) -> None:
        processes = start(tmp_path, dataset, run, step_s=0.4, **fields, **ram)
        written = [tmp_path / "ram" / str(host) / str(count) / "commit_success.txt" for host in range(2)]
        wait_for(processes, lambda: all(path.exists() for path in written))
        for process in processes:
            process.kill()
            process.communicate()

    killed_at(8)
    processes = start(tmp_path, dataset, run, **fields, **ram)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [re.findall(r"step (\d+) comes from the memory of the hosts", err) for _, err in outputs]
    assert found[0] == found[1]
    assert found[0] in (["4"], ["8"], ["12"]), "the newest that both had finished when they were killed"
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    if not whole:
        return
    finish(start(tmp_path, dataset, tmp_path / "whole", **fields))
    assert lines(run) == lines(tmp_path / "whole")
    with Checkpointer(run) as ours, Checkpointer(tmp_path / "whole") as theirs:
        assert ours.read_meta(STEPS)["checksums"] == theirs.read_meta(STEPS)["checksums"]

    other = tmp_path / "other"
    processes = start(tmp_path, dataset, other, stop_at=2, **fields, **ram)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "in memory is of another run" in outputs[0][1]
    assert [line["step"] for line in lines(other)] == [1, 2]
    shutil.rmtree(tmp_path / "ram" / "1")
    finish(start(tmp_path, dataset, other, stop_at=3, **fields, **ram))
    assert [line["step"] for line in lines(other)] == [1, 2, 3]


def test_one_process_and_rewinds_are_refused(dataset, one_device, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.checkpoint\.ram = /.*: is for several processes"):
        train(small.make_config(dataset, checkpoint__ram=str(tmp_path / "ram")), tmp_path / "run", one_device)
    config = small.make_config(
        dataset, checkpoint__ram="/ram", train__on_spike="rewind", health__loss_spike=5.0
    )
    with pytest.raises(ConfigError, match=r"checkpoint\.ram.*must be the same after a restart"):
        validate(config)
