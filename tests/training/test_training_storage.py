"""Run directories in a bucket of a real storage server, whole and while the server fails: real processes, injected faults."""

from __future__ import annotations

import json
import re
import time

import jax
import pytest
import training_small as small
from etils import epath
from gcs_server import WRITES
from training_processes import finish, lines, start, wait_for

from lacy_jax.errors import DEFECT, PEER_LOST, STORAGE
from lacy_jax.training import read_metrics, side_files, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.metrics_files import metrics_sessions, part_path
from lacy_jax.training.side_files import GrowingFile, SideWriter
from lacy_jax.training.signals import StopRequest

LEAVES_S = 180
"""Most seconds until a process has left after a failure; JAX would wait 300 at its barrier."""


def test_a_run_in_a_bucket_is_the_run_on_a_disk(dataset, one_device, finished_run, bucket, gcs, monkeypatch):
    """Stopped half way and resumed; with traces and TensorBoard, which a bucket takes, too."""
    run = f"{bucket}/runs/one"
    fields = {"metrics__tensorboard": True, "health__profile_start": 2, "health__profile_steps": 2}
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "reached", lambda self, step: step == 8)
        assert train(small.make_config(dataset, **fields), run, one_device).interrupted
    train(small.make_config(dataset, **fields), run, one_device)
    assert lines(run) == lines(finished_run)
    assert [after for after, _ in metrics_sessions(run)] == [0, 8]
    with Checkpointer(run) as ours, Checkpointer(finished_run) as theirs:
        assert ours.read_meta(12)["checksums"] == theirs.read_meta(12)["checksums"]
    names = list(gcs.objects(bucket))
    assert not any("tmp" in name for name in names)
    for pattern in (r"profile/plugins/profile/[^/]+/[^/]+\.xplane\.pb", r"tensorboard/events\.out\.tfevents\.", "config.json",
                    "environment.json", "tokenizer.model", "dataset_metadata.json", r"health\.jsonl"):  # fmt: skip
        assert any(re.search(pattern, name) for name in names), pattern
    assert json.loads(gcs.read(f"{run}/heartbeat.json"))["state"] == "finished"
    assert len(json.loads(gcs.read(f"{run}/environment.json"))) == 2
    events = [json.loads(line)["event"] for line in gcs.read(f"{run}/health.jsonl").splitlines()]
    assert events == ["begin", "session"] * 2


def test_data_comes_from_a_bucket_and_a_resumed_run_needs_no_copy_of_it(
    dataset, one_device, finished_run, bucket, gcs, tmp_path, monkeypatch
):
    """Its second half is trained on another host, whose cache is empty."""
    gcs.put_folder(dataset, f"{bucket}/data")
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "reached", lambda self, step: step == 8)
        first = small.make_config(f"{bucket}/data", dataset__cache=str(tmp_path / "a"))
        assert train(first, tmp_path / "run", one_device).interrupted
    assert any(tmp_path.glob("a/*array_record*"))
    train(
        small.make_config(f"{bucket}/data", dataset__cache=str(tmp_path / "b")), tmp_path / "run", one_device
    )
    assert lines(tmp_path / "run") == lines(finished_run)
    with Checkpointer(tmp_path / "run") as ours, Checkpointer(finished_run) as theirs:
        assert ours.read_meta(12)["checksums"] == theirs.read_meta(12)["checksums"]


def test_a_session_takes_back_what_came_after_its_start_and_old_files_are_read(tmp_path):
    """Lines of metrics.jsonl, of parts, and of a session that was killed after the checkpoint that the next began with."""
    workdir = epath.Path(tmp_path)

    def rows(*steps: int) -> str:
        return "".join(json.dumps({"step": step, "split": "train", "loss": 0.0}) + "\n" for step in steps)

    (workdir / "metrics.jsonl").write_text(rows(1, 2, 3, 4) + '{"step": 5, "sp')
    (workdir / "metrics").mkdir()
    part_path(workdir, 1, 3, 0).write_text(rows(4, 5))
    part_path(workdir, 1, 3, 1).write_text(rows(6, 7))
    part_path(workdir, 2, 5, 0).write_text(rows(6, 8))
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2, 3, 4, 5, 6, 8]


def test_a_file_in_a_bucket_grows_by_parts(bucket, gcs):
    """Of bounded size, so that the bytes that travel are, too; a session goes on where the one before ended."""
    folder = epath.Path(bucket) / "x"
    added = [f"{i}\n".encode().rjust(10) for i in range(100)]
    growing = GrowingFile(lambda part: folder / f"{part}.txt", part_bytes=200)
    for i, data in enumerate(added):
        growing.add(data)
        if i % 10 == 9:
            growing.write()
    growing.write()  # Nothing is new.
    assert gcs.objects(bucket) == {f"x/{part}.txt": 200 for part in range(5)}
    assert b"".join(gcs.read(f"{bucket}/x/{part}.txt") for part in range(5)) == b"".join(added)
    assert len(gcs.writes(r"x/\d+\.txt")) == 10
    again = GrowingFile(lambda part: folder / f"{4 + part}.txt", part_bytes=300)
    again.add(b"more")
    again.write()
    assert gcs.read(f"{bucket}/x/4.txt").endswith(b"99\nmore")


def test_a_file_in_a_bucket_is_written_once_an_interval(bucket):
    """And what came since at the end."""
    calls, last = [], []
    with SideWriter(epath.Path(bucket), interval_s=1e6) as side:
        for i in range(100):
            last.append(i)
            side.submit("x", lambda: calls.append(len(last)))
    assert len(calls) <= 2
    assert calls[-1] == 100
    assert side_files.REMOTE_INTERVAL_S == 30.0


STEPS = 150


def _training(dataset, folder, run, **fields):
    """A run whose only checkpoint is at its end, once it has taken its first step."""
    fields = {"train__steps": STEPS, "train__eval_every": 0, "checkpoint__every": 10_000, **fields}
    processes = start(folder, dataset, run, step_s=0.02, **fields)
    wait_for(processes, lambda: lines(run))
    return processes


@pytest.mark.parametrize(
    ("kind", "every", "seconds"),
    [
        (503, 1, 6),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((429, 2, float("inf")), ("reset", 2, float("inf")), ("silence", 1, 4), (503, 1, 60))
        ),
    ],
)
def test_what_passes_costs_nothing(dataset, tmp_path, bucket, gcs, kind, every, seconds):
    """Not a step, not a line of metrics: 60 s of 503, 429 on every second write, connections that are cut, no answer."""
    run = f"{bucket}/run"
    steps = (
        STEPS if seconds != 60 else 6000
    )  # It begins with a side file; the fault is over before the checkpoint.
    processes = _training(dataset, tmp_path, run, train__steps=steps)
    fault = gcs.fail(kind, WRITES, every=every, seconds=seconds)
    finish(processes)
    assert fault.hits
    gcs.heal()
    assert [line["step"] for line in lines(run)] == list(range(1, steps + 1))
    assert json.loads(gcs.read(f"{run}/heartbeat.json"))["step"] == steps
    with Checkpointer(run) as checkpointer:
        assert checkpointer.steps() == [steps]


@pytest.mark.parametrize(
    ("status", "methods", "processes"),
    [
        (403, WRITES, 2),
        (404, WRITES | {"GET"}, 1),
        pytest.param(403, WRITES, 1, marks=pytest.mark.slow),
        pytest.param(404, WRITES | {"GET"}, 2, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_one_line(
    dataset, tmp_path, bucket, gcs, status, methods, processes
):
    """A bucket that turned read-only, or was deleted: training goes on to the next checkpoint, and all leave at once."""
    run = f"{bucket}/run"
    started = _training(
        dataset,
        tmp_path,
        run,
        processes=processes,
        train__steps=5000,
        checkpoint__every=20,
    )
    wait_for(started, lambda: any("checkpoints/40/" in name for name in gcs.objects(bucket)))  # 20 is done.
    gcs.fail(status, frozenset(methods))
    began = time.monotonic()
    outputs = [process.communicate(timeout=200) for process in started]
    assert time.monotonic() - began < LEAVES_S
    ended = [process.returncode for process in started]
    errors = [[line for line in err.splitlines() if line.startswith("lacy train: ")] for _, err in outputs]
    assert STORAGE.status in ended, outputs
    assert set(ended) <= {STORAGE.status, PEER_LOST.status}, outputs
    (line,) = errors[ended.index(STORAGE.status)]
    assert re.match(
        rf"lacy train: cannot write checkpoint {run}/checkpoints/\d+: .*; last good checkpoint: step \d+",
        line,
    )
    assert all(len(of_one) == 1 for of_one in errors), outputs
    assert not any("Traceback" in err.split("lacy train: ")[-1] for _, err in outputs)


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_while_two_processes_resume(
    dataset, tmp_path, bucket, gcs
):
    """Process 0 moves it, slowly; the other one does not list the folder meanwhile, and both write that step again."""
    run = f"{bucket}/run"
    fields = {"processes": 2, "train__eval_every": 0, "checkpoint__every": 4, "checkpoint__keep": 3}
    finish(start(tmp_path, dataset, run, stop_at=8, **fields))
    bad = [name for name in gcs.objects(bucket) if re.search(r"checkpoints/8/params/.*/d/", name)]
    assert bad
    for name in bad:
        gcs.put(f"{bucket}/{name}", bytes(64))
    gcs.latency_s = 0.005  # Moving a folder takes a request for each of its objects.
    try:
        processes = start(tmp_path, dataset, run, **fields)
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        gcs.latency_s = 0.0
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("going back to step 4" in err and "resuming from step 4" in err for _, err in outputs)
    names = gcs.objects(bucket)
    assert any(name.startswith("run/damaged/8/") for name in names)
    assert [line["step"] for line in lines(run)] == list(range(1, 13))
    with Checkpointer(run) as checkpointer:
        assert checkpointer.steps() == [4, 8, 12]
        assert checkpointer.read_meta(8)["step"] == 8


def test_a_process_sees_what_another_one_has_set_aside(dataset, one_device, bucket, gcs, monkeypatch):
    """Although it has listed the folder before: else it would not write that step again, and the others would wait for it."""
    run = f"{bucket}/run"
    config = small.make_config(dataset, train__steps=8, train__eval_every=0, checkpoint__every=4)
    train(config, run, one_device)
    with Checkpointer(run, config) as checkpointer:
        assert checkpointer.steps() == [4, 8]
        for folder in ("checkpoints", "checkpoints/8"):  # As when it has tried to read that checkpoint.
            assert list(epath.Path(run, folder).iterdir())
        for name in gcs.objects(bucket):
            if "/checkpoints/8/" in name:
                gcs.delete(f"{bucket}/{name}")
        with monkeypatch.context() as patched:
            patched.setattr(jax, "process_index", lambda: 1)
            checkpointer.set_aside_after(4)
        assert checkpointer.steps() == [4]


def test_a_bucket_that_is_not_there_is_one_line(dataset, tmp_path, gcs):
    gcs.fail(404)
    (process,) = start(tmp_path, dataset, "gs://no-such-bucket-at-all/run")
    _, err = process.communicate(timeout=LEAVES_S)
    assert process.returncode == STORAGE.status, err
    (line,) = [line for line in err.splitlines() if line.startswith("lacy train: ")]
    assert "gs://no-such-bucket-at-all/run" in line


def test_a_defect_in_one_process_ends_both_at_once(dataset, tmp_path):
    """With its traceback; JAX's farewell, which waits for the others, is left out."""
    patch = """
def put_and_fail(*args, count=[0]):
    import jax
    count[0] += 1
    if count[0] == 20 and jax.process_index() == 1:
        raise ZeroDivisionError("a defect")
    return put(*args)
sharding.put_batch = put_and_fail
"""
    processes = start(
        tmp_path, dataset, tmp_path / "run", processes=2, patch=patch, silence=10,
        train__steps=5000, train__eval_every=0, checkpoint__every=5000,
    )  # fmt: skip
    outputs = [process.communicate(timeout=LEAVES_S) for process in processes]
    assert [process.returncode for process in processes] == [PEER_LOST.status, DEFECT.status], outputs
    assert "ZeroDivisionError: a defect" in outputs[1][1]


def test_a_process_that_holds_the_interpreter_shows_its_stacks(dataset, tmp_path):
    """It cannot say that it lives; before the others give it up it has written what it is doing."""
    patch = """
def put_and_hang(*args, count=[0]):
    import ctypes
    import jax
    count[0] += 1
    if count[0] == 20 and jax.process_index() == 1:
        ctypes.PyDLL(None).sleep(1000)
    return put(*args)
sharding.put_batch = put_and_hang
"""
    processes = start(
        tmp_path, dataset, tmp_path / "run", processes=2, patch=patch, silence=5,
        train__steps=5000, train__eval_every=0, checkpoint__every=5000,
    )  # fmt: skip
    _, err = processes[0].communicate(timeout=LEAVES_S)
    processes[1].kill()
    _, hung = processes[1].communicate()
    assert processes[0].returncode == PEER_LOST.status, err
    assert "process 1 for 5 s: it has died or hangs" in err
    assert "most recent call first" in err, "where the one that gives up stands"
    assert "Timeout" in hung
    assert "put_and_hang" in hung
