"""Metrics on disk, throughput, and the record of the environment."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import time
import types

import jax
import pytest
from etils import epath

from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.training import side_files, throughput
from lacy_jax.training.clock import Clock
from lacy_jax.training.environment import describe_environment, record_environment
from lacy_jax.training.metrics import MetricsWriter
from lacy_jax.training.metrics_files import read_metrics
from lacy_jax.training.side_files import SideWriter


def _config(**fields):
    config = get_default_config()
    config.metrics.tensorboard = False
    for name, value in fields.items():
        config.metrics[name] = value
    return config


@contextlib.contextmanager
def _writer(workdir, config, resume_step=0):
    """What is written in the background is there when this ends."""
    with SideWriter(epath.Path(workdir)) as side:
        writer = MetricsWriter(workdir, config, side, resume_step)
        yield writer
        writer.close()


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    with _writer(tmp_path, _config()) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "split": "tr')  # Killed in the middle of a line.
    with _writer(tmp_path, _config(), resume_step=2) as writer:
        writer.write(3, "train", {"loss": 30.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": 2.0},
        {"step": 3, "split": "train", "loss": 30.0},
    ]


def test_what_is_not_finite_is_null(tmp_path):
    with _writer(tmp_path, _config()) as writer:
        writer.write(1, "train", {"loss": float("nan"), "grad_norm": float("inf")})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "split": "train",
        "loss": None,
        "grad_norm": None,
    }


def test_a_full_disk_costs_a_warning_and_no_line(tmp_path, monkeypatch, capsys):
    """Half a line is taken back, and what could not be written comes when there is space."""
    appended, failures = side_files._append, iter([True, False, True, True])

    def full(path, data):
        if next(failures, False):
            raise OSError(28, "No space left on device")
        appended(path, data)

    monkeypatch.setattr(side_files, "_append", full)
    monkeypatch.setattr(side_files, "_LEAST_S", 0.01)
    with _writer(tmp_path, _config()) as writer:
        for step in range(1, 6):
            writer.write(step, "train", {"loss": 1.0})
            time.sleep(0.02)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    err = capsys.readouterr().err
    assert "warning: cannot write metrics: No space left on device; trying again, training goes on" in err
    assert "note: metrics written, after 1 failures" in err


def test_what_a_disk_takes_half_is_taken_back(tmp_path):
    path = epath.Path(tmp_path) / "x"
    side_files._append(path, b"one\n")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            side_files._append(path, b"two and more\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"one\n"


def test_a_write_that_never_succeeds_does_not_hold_the_end_up(tmp_path, capsys):
    side = SideWriter(epath.Path(tmp_path))
    with side:
        side.submit("heartbeat", lambda: (_ for _ in ()).throw(OSError(13, "Permission denied")))
        side.close(0.2)
    assert "warning: heartbeat of the last steps not written: Permission denied" in capsys.readouterr().err


def _scalars(folder) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of a folder: its files by name; the start of a session hides the steps from its own on."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:  # TFRecord: length (8), its CRC (4), event, its CRC (4).
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                found = [scalar for scalar in found if scalar[1] < event.step]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_holds_the_same_scalars_and_each_step_once(tmp_path):
    """Also of a session that was killed before its first checkpoint, and of two that begin within a second."""
    for session, (resume_step, steps) in enumerate(((0, (1, 2, 3)), (0, (1, 2)), (1, (2, 3)))):
        with _writer(tmp_path, _config(tensorboard=True), resume_step) as writer:
            for step in steps:
                writer.write(step, "valid", {"nll": float(10 * session + step)})
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 3
    assert _scalars(tmp_path / "tensorboard") == [
        ("valid/nll", 1, 11.0),
        ("valid/nll", 2, 22.0),
        ("valid/nll", 3, 23.0),
    ]


def test_wandb_asked_for_but_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"config.metrics.wandb = True: wandb is not installed; pip install wandb"
    ):
        MetricsWriter(tmp_path, _config(wandb=True), SideWriter(epath.Path(tmp_path)))


def test_wandb_gets_the_same_numbers(tmp_path, monkeypatch):
    """Its own step counts calls, since it drops what goes back, as our step does in a session that resumes."""
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", kwargs["id"], kwargs["resume"]))  # type: ignore[attr-defined]
    fake.define_metric = lambda name, step_metric=None: calls.append(("define", name, step_metric))  # type: ignore[attr-defined]
    fake.log = lambda values: calls.append(("log", values))  # type: ignore[attr-defined]
    fake.finish = lambda: calls.append(("finish",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.chdir(tmp_path)
    for workdir, step in (("run", 2), (tmp_path / "run", 1), ("./run/", 2), ("other/run", 1)):
        with _writer(workdir, _config(wandb=True)) as writer:
            writer.write(step, "train", {"loss": 2.0, "bad": float("nan")})
    first, second = [calls[i : i + 5] for i in (0, 5)]
    assert first[1:] == [
        ("define", "step", None),
        ("define", "*", "step"),
        ("log", {"step": 2, "train/loss": 2.0, "train/bad": None}),
        ("finish",),
    ]
    assert second[3][1]["step"] == 1
    ids = [call[1:] for call in calls if call[0] == "init"]
    assert ids[0] == ids[1] == ids[2] != ids[3]  # The same folder is the same run, by whatever path.
    assert ids[0][1] == "allow"


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_peak_of_known_chips(monkeypatch, kind, peak):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(device_kind=kind)])
    assert throughput.peak_flops() == (peak, "table")
    assert throughput.peak_flops(1e12) == (1e12, "config")


def test_peak_of_an_unknown_chip_is_measured(monkeypatch):
    monkeypatch.setattr(throughput, "measured_matmul_flops", lambda: 8e9)
    peak, source = throughput.peak_flops()
    assert (peak, source) == (8e9 / len(jax.local_devices()), "measured")


def test_measured_matmul_is_plausible():
    assert 1e8 < throughput.measured_matmul_flops(size=128, repeats=2) < 1e15


def test_meter_arithmetic(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    meter = throughput.ThroughputMeter(clock, flops_per_position=50.0, peak_flops_total=10_000.0)
    assert meter.report() == {}
    for _ in range(2):
        with clock.phase("input"):
            now[0] += 1.0
        now[0] += 3.0
        meter.count(tokens=90, positions=100)
    with clock.phase("evaluation"):
        now[0] += 100.0  # It does not count.
    assert meter.report() == pytest.approx(
        {"tokens_per_s": 180 / 8, "mfu": 50 * 200 / 8 / 10_000, "input_wait_share": 2 / 8, "step_s": 4.0}
    )
    assert meter.report() == {}


def test_a_peak_measured_on_a_busy_machine_is_measured_again(monkeypatch):
    """An MFU beyond what a matmul reaches says that the matmul was slow then; it is never reported as such."""
    now, peaks = [0.0], iter([50.0, 400.0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = throughput.ThroughputMeter(Clock(), 10.0, 100.0, lambda: next(peaks))

    def report(seconds):
        now[0] += seconds
        meter.count(tokens=1, positions=20)
        return meter.report().get("mfu")

    assert report(4.0) == pytest.approx(0.5)  # 50 of 100 FLOP/s.
    assert report(1.0) is None  # 200, and measured again: 50, so still 100.
    assert report(1.0) == pytest.approx(0.5)  # Of 400.
    assert report(2.0) == pytest.approx(0.25)


def test_a_measured_peak_is_the_best_so_far(monkeypatch):
    monkeypatch.setattr(throughput, "_best_measured", {128: 1e15})
    assert throughput.measured_matmul_flops(size=128, repeats=1) == 1e15


def test_environment_has_one_entry_per_session(tmp_path):
    for step in (0, 7):
        session = describe_environment(step)
        for _ in range(2):  # An attempt that seemed to fail is made again.
            record_environment(tmp_path, session)
    sessions = json.loads((tmp_path / "environment.json").read_text())
    assert [session["start_step"] for session in sessions] == [0, 7]
    assert sessions[0]["packages"]["jax"] == jax.__version__
    assert sessions[0]["devices"]["count"] == jax.device_count()
    assert set(sessions[0]) >= {"git", "command", "python", "lacy_jax"}


def test_rows_of_earlier_runs_are_read_under_the_names_of_today(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "call_rate": 0.1, "n_valid": 7}\n')
    (row,) = read_metrics(tmp_path)
    assert (row["realised_call_rate"], row["weight_sum"]) == (0.1, 7)
    assert not {"call_rate", "n_valid"} & row.keys()
