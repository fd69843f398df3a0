"""What Google Cloud's own packages record of a run: goodput over restarts (`ml-goodput-measurement`), and metrics and profiles
on demand (`google-cloud-mldiagnostics`). Both are optional and off by default; if the cloud fails, the run warns and goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError, one_line
from lacy_jax.run_files import TENSORBOARD_FOLDER

LOG_NAME = "lacy_goodput"
"""Name of the log in Cloud Logging."""
_UPLOAD_S = 60
_MLDIAGNOSTICS_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "tokens_per_s": "throughput",
}
"""Our metrics -> the predefined ones of mldiagnostics; the others keep their names. MFU is in percent there."""


def _module(field: str, name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"config.{field} = True: {package} is not installed: pip install 'lacy_jax[cloud]', or set it to False"
        ) from None


class CloudRecorder:
    """Records a session; every method does nothing if both fields are off. A context manager.

    Args:
      config: reads `metrics.cloud_goodput`, `metrics.cloud_diagnostics` and `name`.
      workdir: run directory; its name belongs to the job's name, so that restarts are the same job.

    Raises:
      ConfigError: a package is not installed.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path):
        self._config, self._workdir = config, workdir
        self._job = f"{config.name}-{os.fspath(workdir).rstrip('/').replace('gs://', '').replace('/', '-')}"[
            -100:
        ]
        goodput, diagnostics = config.metrics.cloud_goodput, config.metrics.cloud_diagnostics
        self._package: Any = (
            _module("metrics.cloud_goodput", "ml_goodput_measurement", "ml-goodput-measurement")
            if goodput
            else None
        )
        self._diagnostics: Any = (
            _module("metrics.cloud_diagnostics", "google_cloud_mldiagnostics", "google-cloud-mldiagnostics")
            if diagnostics
            else None
        )
        self._recorder: Any = None
        self._monitor: Any = None
        self._recording = False
        self._warned: set[str] = set()

    def __enter__(self) -> CloudRecorder:
        if self._package is not None and jax.process_index() == 0:
            self._try("goodput", self._start_goodput)
        if self._diagnostics is not None:
            self._try("diagnostics", self._start_diagnostics)
        return self

    def __exit__(self, *error: object) -> None:
        if self._monitor is not None:
            self._try("goodput", self._monitor.stop_goodput_uploader)
        self._say("flush")

    def _try(self, what: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # Credentials, quota, network: nothing of it may end a run.
            if what not in self._warned:
                print(
                    f"warning: cloud {what}: {one_line(error)}; training goes on", file=sys.stderr, flush=True
                )
            self._warned.add(what)

    def _start_goodput(self) -> None:
        recorder = self._package.goodput.GoodputRecorder
        self._recorder = recorder(self._job, LOG_NAME, logging_enabled=True)
        self._say("record_job_start_time")
        self._say("record_training_preparation_start_time")
        self._monitor = self._package.monitoring.GoodputMonitor(
            self._job,
            LOG_NAME,
            os.fspath(self._workdir / TENSORBOARD_FOLDER),
            _UPLOAD_S,
            monitoring_enabled=True,
            include_badput_breakdown=True,
        )
        self._monitor.start_goodput_uploader()

    def _start_diagnostics(self) -> None:
        remote = os.fspath(self._workdir) if not files.is_local(self._workdir) else None
        self._diagnostics.machinelearning_run(
            name=self._config.name,
            run_group="lacy_jax",
            configs=self._config.to_dict(),
            gcs_path=remote,
            region=None,
            on_demand_xprof=True,
            log_system_metrics=True,
        )
        self._recording = True

    def _say(self, method: str, **arguments: object) -> None:
        if self._recorder is not None:
            self._try("goodput", lambda: getattr(self._recorder, method)(**arguments))

    def prepared(self) -> None:
        """The first step follows."""
        self._say("record_training_preparation_end_time")

    def step(self, step: int) -> None:
        """A step is about to be dispatched."""
        self._say("record_step_start_time", step=step)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """A context around waiting for a batch."""
        self._say("record_data_loading_start_time")
        yield
        self._say("record_data_loading_end_time")

    @contextlib.contextmanager
    def pausing(self, why: str) -> Iterator[None]:
        """A context around work between steps."""
        self._say("record_custom_badput_event_start_time", custom_badput_event_type=why)
        yield
        self._say("record_custom_badput_event_end_time", custom_badput_event_type=why)

    def ended(self) -> None:
        """The run is finished or was stopped."""
        self._say("record_job_end_time")

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Metrics of a step."""
        if not self._recording or jax.process_index():
            return
        named = dict(values)
        if "mfu" in named:
            named["mfu"] = 100 * named["mfu"]
        data = [
            {
                "metric_name": _MLDIAGNOSTICS_NAMES.get(name, name)
                if split == "train"
                else f"{split}/{name}",
                "value": float(value),
            }
            for name, value in named.items()
        ]
        self._try("diagnostics", lambda: self._diagnostics.metrics.record_metrics(data, step=step))
