"""Metrics on disk, throughput, and the record of the environment."""

from __future__ import annotations

import json
import sys
import time
import types

import jax
import pytest

from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError, TrainingError
from lacy_jax.training import throughput
from lacy_jax.training.clock import Clock
from lacy_jax.training.environment import record_environment
from lacy_jax.training.metrics import MetricsWriter, read_metrics


def _config(**fields):
    config = get_default_config()
    config.metrics.tensorboard = False
    for name, value in fields.items():
        config.metrics[name] = value
    return config


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, _config())
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "split": "tr')  # Killed in the middle of a line.
    writer = MetricsWriter(tmp_path, _config(), resume_step=2)
    writer.write(3, "train", {"loss": 30.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": 2.0},
        {"step": 3, "split": "train", "loss": 30.0},
    ]


def test_what_is_not_finite_is_null(tmp_path):
    MetricsWriter(tmp_path, _config()).write(1, "train", {"loss": float("nan"), "grad_norm": float("inf")})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "split": "train",
        "loss": None,
        "grad_norm": None,
    }


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, _config())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(
        TrainingError, match=r"cannot write metrics of step 5 to .*metrics.jsonl: No space left on device"
    ):
        writer.write(5, "train", {"loss": 1.0})


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
        writer = MetricsWriter(tmp_path, _config(tensorboard=True), resume_step)
        for step in steps:
            writer.write(step, "valid", {"nll": float(10 * session + step)})
        writer.close()
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
        MetricsWriter(tmp_path, _config(wandb=True))


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
        writer = MetricsWriter(workdir, _config(wandb=True))
        writer.write(step, "train", {"loss": 2.0, "bad": float("nan")})
        writer.close()
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
    record_environment(tmp_path, 0)
    record_environment(tmp_path, 7)
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
