"""Runs that lose processes, are killed at any moment, or move to other machines: real processes, real signals."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import time

import jax
import pytest
import training_small as small
from training_processes import finish, lines, start, wait_for

from lacy_jax.errors import PEER_LOST, STORAGE
from lacy_jax.training import train
from lacy_jax.training.checkpoint import Checkpointer


def _end(workdir: pathlib.Path, step: int):
    with Checkpointer(workdir) as checkpointer:
        meta = checkpointer.read_meta(step)
    return meta["checksums"], meta["pipeline"], meta["totals"], lines(workdir), lines(workdir, "valid")


def _orphans(workdir: pathlib.Path) -> list[str]:
    """What a killed write may leave behind: temporary files and folders of Orbax and ours."""
    return [
        str(p.relative_to(workdir))
        for p in workdir.rglob("*")
        if "tmp" in p.name or p.name.endswith(".partial")
    ]


def _halted_while(process, checkpoints: pathlib.Path) -> bool:
    """Whether it was writing a checkpoint; if so it stands still."""
    if any(checkpoints.glob("*tmp*")):
        process.send_signal(signal.SIGSTOP)
        if any(checkpoints.glob("*tmp*")):
            return True
        process.send_signal(signal.SIGCONT)
    return False


def _stop_again_and_again(dataset, folder, kills: int, steps: int) -> list[str]:
    """End a run once by SIGTERM, then `kills` times by SIGKILL, every other time inside a checkpoint write, and let it finish;
    how each kill came."""
    chance = random.Random(0)
    fields = {"train__steps": steps, "train__eval_every": 20, "checkpoint__every": 2, "checkpoint__keep": 3}
    broken, moments = folder / "broken", []
    checkpoints = broken / "checkpoints"
    for kill in range(-1, kills):
        (process,) = start(folder, dataset, broken, step_s=0.05, **fields)
        before = len(lines(broken))
        wait_for([process], lambda before=before: len(lines(broken)) != before)  # It trains (again).
        if kill < 0:
            process.send_signal(signal.SIGTERM)
            _saved(process, broken, steps)
            continue
        inside = kill % 2 == 0
        if inside:
            wait_for([process], lambda process=process: _halted_while(process, checkpoints))
        else:
            time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == -9, f"kill {kill}: it ended by itself: {err}"
        moments.append("inside a checkpoint write" if inside else "elsewhere")
    finish(start(folder, dataset, broken, **fields))
    finish(start(folder, dataset, folder / "whole", **fields))
    assert _end(broken, steps) == _end(folder / "whole", steps)
    assert _orphans(broken) == []
    return moments


def _saved(process, workdir: pathlib.Path, steps: int) -> None:
    """It ends well, with a checkpoint, and says where."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "resumable" in out
    with Checkpointer(workdir) as checkpointer:
        (*_, stopped_at) = checkpointer.steps()
    assert f"saved at step {stopped_at} of {steps}" in out
    assert stopped_at < steps - 10, "the run finished before the signal came; nothing was tested"


@pytest.mark.oldest
def test_stopped_and_killed_again_and_again_it_is_the_run_that_was_not(dataset, tmp_path):
    moments = _stop_again_and_again(dataset, tmp_path, kills=3, steps=60)
    assert "inside a checkpoint write" in moments


@pytest.mark.slow
def test_killed_fifty_times(dataset, tmp_path):
    moments = _stop_again_and_again(dataset, tmp_path, kills=50, steps=600)
    assert moments.count("inside a checkpoint write") >= 10
    print(
        f"killed {len(moments)} times, {moments.count('inside a checkpoint write')} of them inside a checkpoint write"
    )


@pytest.mark.parametrize("state", ["starting", "training", "evaluating"])
def test_a_signal_at_any_moment_ends_with_a_checkpoint(dataset, tmp_path, state):
    """While it compiles, trains or evaluates, and although the launcher signals twice: what is under way, one save, the end."""
    (process,) = start(
        tmp_path, dataset, tmp_path / "run", step_s=0.02, train__steps=5000, train__eval_every=1,
        health__heartbeat_s=0.01, checkpoint__every=5000,
    )  # fmt: skip

    def reached() -> bool:
        heartbeat = tmp_path / "run" / "heartbeat.json"
        return heartbeat.exists() and json.loads(heartbeat.read_text())["state"] == state

    wait_for([process], reached)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "resumable" in out
    with Checkpointer(tmp_path / "run") as checkpointer:
        (step,) = checkpointer.steps()
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == list(range(1, step + 1)), (
        "every finished step is told, and the last one is the one that was saved"
    )
    assert _orphans(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("victim", "number", "checkpoint_every"),
    [
        (1, signal.SIGKILL, 2000),
        (0, signal.SIGKILL, 2000),
        (1, signal.SIGSTOP, 2000),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0, signal.SIGSTOP, 2000), (0, signal.SIGKILL, 1), (1, signal.SIGKILL, 1))
        ),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_other(dataset, tmp_path, victim, number, checkpoint_every):
    """By one line, whether an exchange with it fails or waits for ever. Of process 0, which leads, JAX may know first."""
    processes = start(
        tmp_path, dataset, tmp_path / "run", processes=2, devices=2, step_s=0.05, silence=6,
        train__steps=2000, train__eval_every=0, mesh__fsdp=2, checkpoint__every=checkpoint_every,
    )  # fmt: skip
    wait_for(processes, lambda: len(lines(tmp_path / "run")) >= 6)
    processes[victim].send_signal(number)
    survivor = processes[1 - victim]
    _, err = survivor.communicate(timeout=100)
    processes[victim].kill()
    processes[victim].communicate()
    ours = [line for line in err.splitlines() if line.startswith("lacy train:")]
    if survivor.returncode in (PEER_LOST.status, STORAGE.status):
        (line,) = ours
        if checkpoint_every == 1 and "cannot write checkpoint" in line:
            assert "; last good checkpoint: step " in line
            return
        assert f"process {1 - victim} of 2" in line
        assert "start all processes again to go on" in line
        assert (
            "lost contact with the others after step" in line
            or f"nothing was heard of process {victim} for 6 s: it has died or hangs" in line
            or (victim == 0 and "process 0, which leads the job, " in line)
        )
    else:
        assert (victim, number) == (0, signal.SIGKILL)
        assert survivor.returncode != 0
        assert "the JAX distributed service detected fatal errors" in err


@pytest.mark.parametrize(
    "four",
    [
        {"mesh__sequence": 2},
        pytest.param({"mesh__tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"mesh__sequence": 2, "mesh__tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_moves_from_two_hosts_to_one_to_four(dataset, tmp_path, four):
    """Stopped at 4 on two processes and at 8 on one, ended on four, on another mesh each time: the same data, the same run.

    Of the four, some share their rows (`tensor`) or hold parts of the same rows (`sequence`).
    """
    fields = {"train__steps": 12, "train__eval_every": 0}
    moved = tmp_path / "moved"
    places = [
        {"processes": 2, "devices": 2, "mesh__fsdp": 2, "stop_at": 4},
        {"processes": 1, "devices": 4, "mesh__fsdp": 4, "stop_at": 8},
        {"processes": 4, "devices": 1, **four},
    ]
    for place in places:
        finish(start(tmp_path, dataset, moved, **fields, **place))
    train(small.make_config(dataset, **fields), tmp_path / "still", jax.devices()[:1])
    for ours, theirs in zip(lines(moved), lines(tmp_path / "still"), strict=True):
        for name in (
            "step",
            "weight_sum",
            "n_called",
            "n_learned",
            "total_tokens",
            "total_learned_tokens",
            "total_positions",
        ):
            assert ours[name] == theirs[name], (
                ours["step"],
                name,
            )  # The same records in the same batches, the same mask.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3), ours["step"]
    with Checkpointer(moved) as a, Checkpointer(tmp_path / "still") as b:
        assert a.read_meta(12)["pipeline"] == b.read_meta(12)["pipeline"]
    assert _orphans(moved) == []


@pytest.mark.slow
def test_a_run_goes_on_with_half_of_its_slices(dataset, tmp_path):
    """`mesh.data` of 4 processes, then of 2, in no other way than the one that the environment leaves: -1."""
    fields = {"train__steps": 12, "train__eval_every": 0}
    for place in ({"processes": 4, "stop_at": 6}, {"processes": 2}):
        finish(start(tmp_path, dataset, tmp_path / "fewer", **fields, **place))
    train(small.make_config(dataset, **fields), tmp_path / "still", jax.devices()[:1])
    counts = ("step", "weight_sum", "n_called", "n_learned", "total_tokens")
    for ours, theirs in zip(lines(tmp_path / "fewer"), lines(tmp_path / "still"), strict=True):
        assert [ours[name] for name in counts] == [theirs[name] for name in counts]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3), ours["step"]
    with Checkpointer(tmp_path / "fewer") as a, Checkpointer(tmp_path / "still") as b:
        assert a.read_meta(12)["pipeline"] == b.read_meta(12)["pipeline"]
