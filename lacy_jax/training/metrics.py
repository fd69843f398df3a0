"""Where metrics go: always to JSON lines, and to TensorBoard and Weights & Biases if requested."""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import struct
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError
from lacy_jax.run_files import METRICS_FILE, METRICS_FOLDER, RUN_ID_FILE, TENSORBOARD_FOLDER
from lacy_jax.training.metrics_files import last_session, metrics_lines, part_path
from lacy_jax.training.side_files import GrowingFile, SideWriter

_EVENTS_BYTES = 2**20  # TensorBoard opens each file.


class MetricsWriter:
    """Writes one JSON object per line, `{"step": .., "split": "train"|"valid", name: value, ..}`; also to TensorBoard
    and W&B.

    A resumed run drops the lines after the step it resumes from, so that no step is written twice. Only process 0
    writes. Nothing waits for storage: `side` repeats writes that fail.

    Args:
      workdir: run directory.
      config: reads `metrics` and `name`; the whole config goes to W&B.
      side: writes in the background.
      resume_step: the step the run starts after; 0 for a fresh run.

    Attributes:
      last: values of the last line of each split in this session.

    Raises:
      ConfigError: metrics.wandb is set and wandb is not installed.
      DataError: on a disk: a line from an earlier session is damaged; the error names it.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ml_collections.ConfigDict,
        side: SideWriter,
        resume_step: int = 0,
    ):
        self._workdir, self._side, self._resume_step = epath.Path(workdir), side, resume_step
        self._active = jax.process_index() == 0
        self.last: dict[str, dict[str, Any]] = {"train": {}, "valid": {}}
        self._wandb: Any = _import_wandb() if config.metrics.wandb else None
        self._session = -1
        self._lines = GrowingFile(self._metrics_path)
        self._events: GrowingFile | None = None
        if not self._active:
            return
        if files.is_local(self._workdir):
            self._begin_on_disk()
        if config.metrics.tensorboard:
            self._events = _event_file(self._workdir / TENSORBOARD_FOLDER, resume_step)
        side.submit("metrics", self._write_lines)
        if self._wandb is not None:
            self._wandb.init(
                project="lacy_jax",
                name=config.name,
                id=_run_id(self._workdir),
                resume="allow",
                dir=os.fspath(workdir) if files.is_local(self._workdir) else None,
                config=config.to_dict(),
            )
            # W&B drops what is logged with a step that goes back, as steps do after a resume or a rewind: let it count
            # calls, and plot against our step, where the later value counts.
            self._wandb.define_metric(_STEP)
            self._wandb.define_metric("*", step_metric=_STEP)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the metrics of one step; values that are not finite become null."""
        finite = {name: (value if math.isfinite(value) else None) for name, value in values.items()}
        self.last[split] = finite
        if not self._active:
            return
        line = json.dumps({"step": step, "split": split, **finite}) + "\n"
        self._lines.add(line.encode())
        self._side.submit("metrics", self._write_lines)
        if self._events is not None:
            self._events.add(_record(step, {f"{split}/{name}": value for name, value in finite.items()}))
            self._side.submit("TensorBoard", self._events.write)
        if self._wandb is not None:
            self._wandb.log({_STEP: step, **{f"{split}/{name}": value for name, value in finite.items()}})

    def checkpointed(self) -> None:
        """Called before a checkpoint is written: a run that resumes from it has all lines before it."""
        if self._active:
            self._side.submit("metrics", self._write_lines, soon=True)

    def close(self) -> None:
        """Close the open files; `side` writes the rest."""
        if self._wandb is not None and self._active:
            self._wandb.finish()

    def _write_lines(self) -> None:
        if self._session < 0 and not files.is_local(self._workdir):
            self._session = last_session(self._workdir) + 1
        self._lines.write()

    def _begin_on_disk(self) -> None:
        kept = "".join(line for line, row in metrics_lines(self._workdir) if row["step"] <= self._resume_step)
        files.write_text(self._workdir / METRICS_FILE, kept)
        if (self._workdir / METRICS_FOLDER).exists():  # It was copied from a bucket.
            (self._workdir / METRICS_FOLDER).rmtree()

    def _metrics_path(self, part: int) -> epath.Path:
        if files.is_local(self._workdir):
            return self._workdir / METRICS_FILE
        return part_path(self._workdir, self._session, self._resume_step, part)


_STEP = "step"


def _run_id(workdir: epath.Path) -> str:
    """The W&B run id of a run directory, kept in it from the first session on, so the path does not matter."""
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


# -- TensorBoard ---------------------------------------------------------------------------------------------------


def _event_file(folder: epath.Path, resume_step: int) -> GrowingFile:
    """The event file of a session (several in a bucket). The library's writer blocks the loop if its thread fails."""
    from tensorboardX.proto import event_pb2

    # The nanoseconds keep two sessions in the same second from overwriting each other.
    prefix = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
    file = GrowingFile(lambda part: folder / f"{prefix}.{part:05d}", _EVENTS_BYTES)
    # Events after the resumed step are hidden, as they are dropped from the JSON lines, including those of a session
    # that was killed before its first checkpoint.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    for event in (
        event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"),
        event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start),
    ):
        file.add(_framed(event.SerializeToString()))
    return file


def _record(step: int, values: Mapping[str, float | None]) -> bytes:
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    return b"".join(
        _framed(
            event_pb2.Event(
                wall_time=time.time(), step=step, summary=summary.scalar(name, value)
            ).SerializeToString()
        )
        for name, value in values.items()
        if value is not None
    )


def _framed(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data)))
    )
