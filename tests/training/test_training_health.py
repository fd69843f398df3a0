"""Health: goodput adds up, outliers and spikes are found and nothing else is, traces and heartbeats are there to read."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import time
from collections.abc import Iterator

import jax
import pytest
import training_small as small
from etils import epath

from lacy_jax import files
from lacy_jax.config import get_default_config, training_fields, validate
from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.training import read_metrics, side_files, train
from lacy_jax.training.clock import PHASES, Clock
from lacy_jax.training.health import Health
from lacy_jax.training.profiling import Profiler
from lacy_jax.training.side_files import SideWriter
from lacy_jax.training.watcher import Watcher


def _events(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "health.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def _health(workdir: pathlib.Path) -> Iterator[Health]:
    """What is written in the background is there when this ends."""
    with (
        SideWriter(epath.Path(workdir)) as side,
        Health(get_default_config(), epath.Path(workdir), Clock(), side) as health,
    ):
        yield health


def test_a_run_says_how_it_went(finished_run):
    beat = json.loads((finished_run / "heartbeat.json").read_text())
    assert (beat["step"], beat["state"]) == (12, "finished")
    assert abs(beat["time"] - time.time()) < 3600
    session = _events(finished_run)[-1]
    assert (session["event"], session["step"]) == ("session", 12)
    assert sum(session[name] for name in ("goodput", *PHASES)) == pytest.approx(1)
    assert all(session[name] > 0 for name in ("goodput", *PHASES))
    assert all(0 < line["goodput"] < 1 for line in read_metrics(finished_run) if line["split"] == "train")


def test_the_clock_takes_phases_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 2.0
    clock.started()
    for name, seconds in (("compile", 1.0), ("input", 0.5), ("checkpoint", 1.5)):
        with clock.phase(name):
            now[0] += seconds
    now[0] = 10.0
    assert clock.training() == 5.5
    shares = {
        "startup": 0.2,
        "compile": 0.1,
        "input": 0.05,
        "checkpoint": 0.15,
        "evaluation": 0,
        "goodput": 0.5,
    }
    assert clock.shares() == pytest.approx(shares)
    assert clock.describe().startswith("goodput 50.0% of 10.0 s; startup 20.0%")


def test_slow_steps_and_loss_spikes_are_events(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with _health(tmp_path) as health:
        health.begin(0)
        for step in range(1, 41):
            now[0] += 9.0 if step == 30 else 1.0 + 0.1 * (step % 3)
            loss = 8.0 if step in (35, 36) else 2.0 + 0.01 * (step % 5) - 0.01 * step
            assert bool(health.finished(step, loss)) == (step in (35, 36))
    found = [(event["event"], event.get("step")) for event in _events(tmp_path)]
    assert found == [("begin", 0), ("slow_step", 30), ("loss_spike", 35), ("loss_spike", 36), ("session", 0)]
    assert "slow_step: step 30 took 9 s, usually 1.1 s" in capsys.readouterr().err


def test_time_in_a_checkpoint_is_no_slow_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    health = Health(get_default_config(), epath.Path(tmp_path), clock, SideWriter(epath.Path(tmp_path)))
    for step in range(1, 31):
        now[0] += 1.0
        if step == 25:
            with clock.phase("checkpoint"):
                now[0] += 50.0
        health.finished(step, 1.0)
    assert health.counts == {"slow_step": 0, "loss_spike": 0}


def test_a_failure_is_the_last_state_and_orphans_go(tmp_path):
    orphan = tmp_path / ".heartbeat.json.0123abcd.tmp"
    orphan.write_text("{")

    def fail():
        with _health(tmp_path) as health:
            assert orphan.exists()  # Nothing is touched before the session is known to train.
            health.begin(0)
            assert not orphan.exists()
            health.dispatched(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (beat["step"], beat["state"]) == (3, "failed")
    assert {path.name for path in tmp_path.iterdir()} == {"heartbeat.json", "health.jsonl"}


def test_a_full_disk_costs_one_warning_not_the_run(tmp_path, monkeypatch, capsys):
    def full(path: object, value: object) -> None:
        raise LacyError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    monkeypatch.setattr(side_files, "_CLOSE_S", 0.1)
    with _health(tmp_path) as health:
        health.begin(0)
        health.state(1, "saving")
    assert capsys.readouterr().err.count("warning: cannot write heartbeat: No space left on device; ") == 1


def test_traces_by_step_and_by_signal_change_no_bits(
    dataset, one_device, finished_run, tmp_path, monkeypatch
):
    """Steps 2 and 3 by config, and two more after SIGUSR1 during step 6."""
    dispatched = Watcher.dispatched

    def signalled(self: Watcher, step: int, metrics: object, data: object) -> object:
        found = dispatched(self, step, metrics, data)
        if step == 6:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1.1)  # Traces are named by the second.
        return found

    monkeypatch.setattr(Watcher, "dispatched", signalled)
    before = signal.getsignal(signal.SIGUSR1)
    config = small.make_config(dataset, health__profile_start=2, health__profile_steps=2)
    train(config, tmp_path, one_device)
    assert signal.getsignal(signal.SIGUSR1) == before
    traces = sorted((tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert len(traces) == 2
    assert all(trace.stat().st_size > 1000 for trace in traces)
    losses = [
        [line["loss"] for line in read_metrics(run) if "loss" in line] for run in (tmp_path, finished_run)
    ]
    assert losses[0] == losses[1]


def test_a_profiler_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    config = get_default_config()
    config.health.profile_start = 1

    def fails(folder):
        raise RuntimeError("no profiler")

    monkeypatch.setattr(jax.profiler, "start_trace", fails)
    with Profiler(config, epath.Path(tmp_path), SideWriter(epath.Path(tmp_path))) as profiler:
        profiler.before(1)
        assert not profiler.ends_with(5)
    assert "warning: profiler: no trace: no profiler" in capsys.readouterr().err


def test_the_profiler_serves_while_the_session_lasts(tmp_path):
    config = get_default_config()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        config.health.profiler_port = free.getsockname()[1]
    with Profiler(config, epath.Path(tmp_path), SideWriter(epath.Path(tmp_path))):
        socket.create_connection(("localhost", config.health.profiler_port), timeout=10).close()


@pytest.mark.parametrize(
    ("field", "value"), [("window", 2), ("slow_step", 0.5), ("loss_spike", -1.0), ("profile_steps", 0)]
)
def test_values_out_of_range_are_refused(field, value):
    config = get_default_config()
    config.health[field] = value
    with pytest.raises(ConfigError, match=rf"config\.health\.{field} = {value}: must be"):
        validate(config)


def test_health_is_free_to_change_between_resumes():
    config = get_default_config()
    before = training_fields(config)
    config.health.heartbeat_s = 1.0
    assert training_fields(config) == before
