"""Profiler traces of a few steps, on demand: SIGUSR1, a step named in the config, or XProf asking the profiler's server."""

from __future__ import annotations

import functools
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
from types import FrameType
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.run_files import PROFILE_FOLDER
from lacy_jax.training.side_files import SideWriter


class Profiler:
    """Context manager that starts traces on SIGUSR1; outside the main thread only at the step named in the config.

    A trace goes to WORKDIR/profile/plugins/profile/TIME, where TensorBoard and XProf look for it. A failure of the
    profiler is only a warning and never ends a run. A trace for a bucket is first written to a temporary folder.

    Args:
      config: `health.profile_start`, `health.profile_steps` and `health.profiler_port` are read.
      workdir: run directory.
      side: moves traces to a bucket.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path, side: SideWriter):
        self._start, self._steps = config.health.profile_start, config.health.profile_steps
        self._port, self._side = config.health.profiler_port, side
        self._folder = workdir / PROFILE_FOLDER
        self._local = ""  # Where the trace under way is written.
        self._serving = False
        self._asked = False
        self._last = 0  # Last step of the trace under way; 0 = none.
        self._old: Any = None

    def __enter__(self) -> Profiler:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGUSR1, self._ask)
        if self._port:
            try:
                jax.profiler.start_server(self._port)
                self._serving = True
            except Exception as error:
                _warn(f"no server on port {self._port}: {error}")
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._old is not None:
            signal.signal(signal.SIGUSR1, self._old)
        if self._serving:
            jax.profiler.stop_server()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """Start a trace if one was asked for; call before `step` is dispatched."""
        if self._last or not (self._asked or step == self._start):
            return
        self._asked = False
        try:
            self._local = (
                str(self._folder) if files.is_local(self._folder) else tempfile.mkdtemp(prefix="lacy_trace")
            )
            jax.profiler.start_trace(self._local)
        except Exception as error:
            _warn(f"no trace: {error}")
        else:
            self._last = step + self._steps - 1

    def ends_with(self, step: int) -> bool:
        """Whether `step` is the last of the current trace; it must be finished before `stop` is called."""
        return self._last == step

    def stop(self) -> None:
        """End the trace, if there is one."""
        if not self._last:
            return
        self._last = 0
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            _warn(f"trace not written: {error}")
        else:
            if not files.is_local(self._folder):
                self._side.submit(f"trace {self._local}", functools.partial(_move, self._local, self._folder))
            print(f"trace written: tensorboard --logdir={self._folder}", file=sys.stderr, flush=True)


def _move(local: str, folder: epath.Path) -> None:
    """The files below `local` to the same places below `folder`; those that are there already again."""
    for path in pathlib.Path(local).rglob("*"):
        if path.is_file():
            (folder / path.relative_to(local)).write_bytes(path.read_bytes())
    shutil.rmtree(local)


def _warn(text: str) -> None:
    print(f"warning: profiler: {' '.join(text.split())}", file=sys.stderr, flush=True)
