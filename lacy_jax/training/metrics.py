"""Where metrics go: JSONL always, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError, TrainingError
from lacy_jax.json_lines import objects, split_lines
from lacy_jax.run_files import METRICS_FILE, RUN_ID_FILE, TENSORBOARD_FOLDER


class MetricsWriter:
    """Writes one JSON object per line, `{"step": .., "split": "train"|"valid", name: value, ..}`; and to TensorBoard, W&B.

    A resumed run first drops the lines after the step it resumes from, so that the file never holds a step twice.
    Only process 0 writes.

    Args:
      workdir: run directory.
      config: reads `metrics` and `name`; the whole config goes to W&B.
      resume_step: the step the run starts after; 0 for a fresh run.

    Raises:
      ConfigError: metrics.wandb is set and wandb is not installed.
      DataError: a line of what an earlier session wrote is damaged, named.
    """

    def __init__(self, workdir: epath.PathLike, config: ml_collections.ConfigDict, resume_step: int = 0):
        self._path = epath.Path(workdir) / METRICS_FILE
        self._active = jax.process_index() == 0
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.metrics.wandb:
            self._wandb = _import_wandb()
        if not self._active:
            return
        self._lines = [line for line, row in _whole_lines(self._path) if row["step"] <= resume_step]
        files.write_text(self._path, "".join(self._lines))
        if config.metrics.tensorboard:
            self._tensorboard = _tensorboard(epath.Path(workdir) / TENSORBOARD_FOLDER, resume_step)
        if self._wandb is not None:
            self._wandb.init(
                project="lacy_jax",
                name=config.name,
                id=_run_id(epath.Path(workdir)),
                resume="allow",
                dir=os.fspath(workdir) if files.is_local(self._path) else None,
                config=config.to_dict(),
            )
            # W&B drops what is logged with a step that goes back, as steps do after a resume or a rewind: let it count
            # calls, and plot against our step, of which the later value is the one that counts.
            self._wandb.define_metric(_STEP)
            self._wandb.define_metric("*", step_metric=_STEP)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the metrics of one step; values that are not finite become null.

        Raises:
          TrainingError: the disk is full.
        """
        if not self._active:
            return
        finite = {name: (value if math.isfinite(value) else None) for name, value in values.items()}
        line = json.dumps({"step": step, "split": split, **finite}) + "\n"
        try:
            if files.is_local(self._path):
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(line)
            else:  # Object stores cannot append.
                self._lines.append(line)
                self._path.write_text("".join(self._lines))
            if self._tensorboard is not None:
                for name, value in finite.items():
                    if value is not None:
                        self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:
            raise TrainingError(
                f"cannot write metrics of step {step} to {self._path}: {error.strerror or error}; "
                "free some space and start the run again"
            ) from error
        if self._wandb is not None:
            self._wandb.log({_STEP: step, **{f"{split}/{name}": value for name, value in finite.items()}})

    def close(self) -> None:
        """Flush and close what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None and self._active:
            self._wandb.finish()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl, in order; empty if there is none. A half-written last line is left out.

    Raises:
      DataError: a line that holds no metrics of a step, named.
    """
    return [current_names(row) for _, row in _whole_lines(epath.Path(workdir) / METRICS_FILE)]


_EARLIER_NAMES = {"call_rate": "realised_call_rate", "n_valid": "weight_sum"}


def current_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under the names of today; what `_EARLIER_NAMES` lists was called otherwise by earlier runs."""
    return {_EARLIER_NAMES.get(name, name): value for name, value in row.items()}


def _whole_lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """(line as it is, its object)."""
    if not path.exists():
        return []
    data = path.read_bytes()
    # A kill can cut the last line, never one before it.
    lines = [line for line in split_lines(data[: data.rfind(b"\n") + 1]) if line.strip()]
    found = []
    for line, (where, row) in zip(lines, objects(lines, str(path)), strict=True):
        if type(row.get(_STEP)) is not int or not isinstance(row.get("split"), str):
            raise DataError(f"{where}: no `step` and `split` of a line of metrics")
        found.append((line.decode("utf-8-sig") + "\n", row))
    return found


_STEP = "step"


def _run_id(workdir: epath.Path) -> str:
    """The W&B run of a run directory, whatever path it is reached by: kept in it from the first session on."""
    path = workdir / RUN_ID_FILE
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:16] + "\n")
    return path.read_text().strip()


def _import_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            "config.metrics.wandb = True: wandb is not installed; pip install wandb, or set it to False"
        ) from None


def _tensorboard(path: epath.Path, resume_step: int) -> Any:
    if not files.is_local(path):
        print(
            f"warning: TensorBoard files go to local folders only, not to {path}; metrics.jsonl is written",
            file=sys.stderr,
        )
        return None
    from tensorboardX import SummaryWriter

    # Events after the resumed step are hidden, as they are dropped from the JSONL: also those of a session that was
    # killed before its first checkpoint. The suffix keeps a session of the same second from overwriting the one before.
    suffix = f".{time.time_ns()}" if path.exists() else ""
    return SummaryWriter(os.fspath(path), purge_step=resume_step + 1, flush_secs=20, filename_suffix=suffix)
