"""Goodput over restarts, from a run's own records and through Google Cloud's packages."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import inspect
import json
import pathlib
import types

import pytest
import training_small as small
from etils import epath

from lacy_jax.config import get_default_config, validate
from lacy_jax.errors import ConfigError
from lacy_jax.report.run_record import read_run
from lacy_jax.report.tables import environments
from lacy_jax.training import cloud, run_goodput, sharding, train
from lacy_jax.training.clock import PHASES
from lacy_jax.training.goodput import DOWN, LOST

T0 = 1_764_000_000.0


def standing(begun: float, start: int, step: int, time: float, **shares: float) -> dict:
    found = dict.fromkeys(PHASES, 0.0) | shares
    return {
        "begun": T0 + begun,
        "start": start,
        "step": step,
        "time": T0 + time,
        "goodput": 1 - sum(shares.values()),
        **found,
    }


def write_events(folder: pathlib.Path, *events: dict) -> None:
    (folder / "health.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_steps_that_were_done_again_and_time_between_sessions_are_no_goodput(tmp_path):
    """100 s with 40 steps, killed, its last checkpoint at step 20; 50 s of nothing; 100 s with 40 steps."""
    first = standing(0, 0, 40, 100, startup=0.2)
    write_events(
        tmp_path,
        {"event": "begin", "step": 0, "time": T0, "before": None},
        {"event": "begin", "step": 20, "time": T0 + 150, "before": first},
        {"event": "session", **standing(150, 20, 60, 250, startup=0.1, checkpoint=0.1)},
    )
    shares = run_goodput(tmp_path)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["goodput"] == pytest.approx((40 + 80) / 250)
    assert shares[LOST] == pytest.approx(40 / 250)
    assert shares[DOWN] == pytest.approx(50 / 250)
    assert (shares["startup"], shares["checkpoint"]) == (pytest.approx(30 / 250), pytest.approx(10 / 250))


def test_a_later_start_takes_back_the_steps_of_all_sessions_before(tmp_path):
    """The third session begins before the second did: its checkpoint was damaged."""
    write_events(
        tmp_path,
        {"event": "session", **standing(0, 0, 40, 40)},
        {"event": "session", **standing(40, 40, 80, 80)},
        {"event": "session", **standing(80, 20, 60, 120)},
    )
    shares = run_goodput(tmp_path)
    assert shares["goodput"] == pytest.approx(60 / 120)
    assert shares[LOST] == pytest.approx(60 / 120)


def test_a_killed_start_is_startup_the_running_session_counts_and_old_runs_say_nothing(tmp_path):
    assert run_goodput(tmp_path) is None
    write_events(tmp_path, {"event": "session", "step": 12, "goodput": 1.0})
    assert run_goodput(tmp_path) is None
    write_events(tmp_path, {"event": "begin", "step": 0, "time": T0 + 50, "before": standing(0, 0, 0, 50)})
    (tmp_path / "heartbeat.json").write_text(json.dumps(standing(50, 0, 10, 100, compile=0.5)))
    shares = run_goodput(tmp_path)
    assert (shares["startup"], shares["compile"], shares["goodput"]) == (
        pytest.approx(0.5),
        pytest.approx(0.25),
        pytest.approx(0.25),
    )


class Log:
    """Cloud Logging, as the package's own tests stand in for it."""

    def __init__(self, job_name: str = "", log_name: str = "", *args: object, **keywords: object):
        self.entries: list[dict] = []

    def write_cloud_logging_entry(self, entry: dict) -> None:
        self.entries.append(entry)

    def flush(self) -> None:
        pass

    def read_cloud_logging_entries(self, start_time=None, end_time=None, last_entry_info=None):
        return self.entries, (datetime.datetime.now(datetime.UTC), "id")


def test_the_package_finds_the_same_goodput_in_the_same_run(tmp_path):
    """Steps of 1 s: 40, of which 20 are lost; 50 s of nothing; 40 more."""
    goodput = pytest.importorskip("ml_goodput_measurement").goodput
    log = Log()
    recorder = goodput.GoodputRecorder("job", "log", True, log)

    def at(seconds: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(T0 + seconds, datetime.UTC)

    for begun, start in ((0, 0), (110, 20)):
        recorder.record_job_start_time(at(begun))
        recorder.record_training_preparation_start_time(at(begun))
        recorder.record_training_preparation_end_time(at(begun + 20))
        for i in range(41):
            recorder.record_step_start_time(start + i, at(begun + 20 + i))
    recorder.record_job_end_time(at(170))
    theirs, badput, step = goodput.GoodputCalculator(
        "job", "log", log, cache_dir=str(tmp_path)
    ).get_job_goodput(True)
    write_events(
        tmp_path,
        {"event": "session", **standing(0, 0, 40, 60, startup=20 / 60)},
        {"event": "session", **standing(110, 20, 60, 170, startup=20 / 60)},
    )
    ours = run_goodput(tmp_path)
    assert step in (59, 60)
    assert theirs / 100 == pytest.approx(ours["goodput"], abs=0.02)
    assert badput[goodput.BadputType.TRAINING_PREP] / 100 == pytest.approx(ours["startup"], abs=0.02)


class Killed(BaseException):
    """Nobody catches it."""


def test_a_run_that_died_and_went_on_knows_what_that_cost(dataset, one_device, tmp_path, monkeypatch, capsys):
    """By its own records, and by what it told the package."""
    package = pytest.importorskip("ml_goodput_measurement")
    log = Log()
    monkeypatch.setattr(package.goodput, "_CloudLogger", lambda *args, **keywords: log)
    monkeypatch.setattr(
        package.monitoring, "GoodputMonitor",
        lambda *args, **keywords: types.SimpleNamespace(start_goodput_uploader=lambda: None, stop_goodput_uploader=lambda: None),
    )  # fmt: skip
    config = small.make_config(dataset, metrics__cloud_goodput=True, checkpoint__asynchronous=False)
    put, count = sharding.put_batch, [0]

    def put_or_die(*args):
        count[0] += 1
        if count[0] == 9:  # Six steps, two batches of validation, and the next step.
            raise Killed
        return put(*args)

    monkeypatch.setattr(sharding, "put_batch", put_or_die)
    with pytest.raises(Killed):
        train(config, tmp_path, one_device)
    train(config, tmp_path, one_device)
    assert "so far: goodput of the run" in capsys.readouterr().err
    shares = run_goodput(tmp_path)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[name] > 0 for name in ("goodput", "startup", "checkpoint", "evaluation", LOST))
    (_, facts), *_ = environments([read_run(tmp_path)])
    assert "lost " in dict(facts)["wall time"]

    started = [entry["step_count"] for entry in log.entries if "step_count" in entry]
    assert started == [*range(1, 8), *range(5, 13)]
    names = {entry["job_name"] for entry in log.entries}
    assert len(names) == 1
    calculator = package.goodput.GoodputCalculator(names.pop(), "log", log, cache_dir=str(tmp_path / "cache"))
    goodput, badput, step = calculator.get_job_goodput(include_badput_breakdown=True)
    assert 0 < goodput < 100
    assert step in (11, 12)
    types_of = package.goodput.BadputType
    assert badput[types_of.WASTED_PROGRESS_FROM_DISRUPTION] > 0
    assert {name.upper() for name in badput[types_of.CUSTOM_BADPUT_EVENTS]} == {"CHECKPOINT", "EVALUATION"}


def test_a_cloud_that_fails_is_one_warning(tmp_path, monkeypatch, capsys):
    package = pytest.importorskip("ml_goodput_measurement")

    def refuse(*args: object, **keywords: object):
        raise RuntimeError("Your default credentials\nwere not found.")

    monkeypatch.setattr(package.goodput, "_CloudLogger", refuse)
    config = get_default_config()
    config.metrics.cloud_goodput = True
    with cloud.CloudRecorder(config, epath.Path(tmp_path)) as recorder:
        for step in range(3):
            recorder.step(step)
            with recorder.loading(), recorder.pausing("evaluation"):
                pass
        recorder.ended()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: cloud goodput: Your default credentials were not found.; training goes on"


def test_metrics_go_to_mldiagnostics_by_their_names_there(monkeypatch):
    """Its real signatures; the control plane itself is Google's."""
    diagnostics = pytest.importorskip("google_cloud_mldiagnostics")
    runs, recorded = [], []

    def start(**arguments: object) -> None:
        inspect.signature(real).bind(**arguments)
        runs.append(arguments)

    real = diagnostics.machinelearning_run
    monkeypatch.setattr(diagnostics, "machinelearning_run", start)
    monkeypatch.setattr(
        diagnostics.metrics._metrics_recorder, "record_metrics", lambda data, on_all: recorded.extend(data)
    )
    config = get_default_config()
    config.metrics.cloud_diagnostics = True
    with cloud.CloudRecorder(config, epath.Path("gs://bucket/run")) as recorder:
        recorder.metrics(7, "train", {"loss": 2.0, "mfu": 0.5, "realised_call_rate": 0.15})
        recorder.metrics(7, "valid", {"nll": 3.0})
    assert runs[0]["gcs_path"] == "gs://bucket/run"
    assert runs[0]["on_demand_xprof"]
    assert [(one["metric_name"], one["value"], one["step"]) for one in recorded] == [
        ("loss", 2.0, 7), ("mfu", 50.0, 7), ("realised_call_rate", 0.15, 7), ("valid/nll", 3.0, 7),
    ]  # fmt: skip
    known = {one.value for one in diagnostics.metric_types.MetricType}
    assert set(cloud._MLDIAGNOSTICS_NAMES.values()) | {"mfu"} <= known
    config.health.profiler_port = 9999
    with pytest.raises(
        ConfigError, match=r"health\.profiler_port.*cloud_diagnostics starts a profiler server"
    ):
        validate(config)


@pytest.mark.parametrize("field", ["cloud_goodput", "cloud_diagnostics"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, field):
    def absent(name: str):
        raise ImportError(name)

    config = get_default_config()
    config.metrics[field] = True
    with monkeypatch.context() as patched, contextlib.suppress(KeyError):
        patched.setattr(importlib, "import_module", absent)
        with pytest.raises(
            ConfigError, match=rf"config\.metrics\.{field} = True: .* pip install 'lacy_jax\[cloud\]'"
        ):
            cloud.CloudRecorder(config, epath.Path(tmp_path))
