"""Profiler traces of a few steps, on demand: SIGUSR1, or a step named in the config."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.run_files import PROFILE_FOLDER


class Profiler:
    """Context manager that answers SIGUSR1; outside the main thread only the step of the config starts a trace.

    A trace goes to WORKDIR/profile/plugins/profile/TIME, where TensorBoard and XProf look for it. A failure of the
    profiler is a warning: it never ends a run.

    Args:
      config: reads `health.profile_start` and `health.profile_steps`.
      workdir: run directory.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path):
        self._start, self._steps = config.health.profile_start, config.health.profile_steps
        self._folder = workdir / PROFILE_FOLDER
        self._asked = False
        self._last = 0  # Last step of the trace under way; 0 = none.
        self._old: Any = None

    def __enter__(self) -> Profiler:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._old is not None:
            signal.signal(signal.SIGUSR1, self._old)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before(self, step: int) -> None:
        """Start a trace if one was asked for; call before `step` is dispatched."""
        if self._last or not (self._asked or step == self._start):
            return
        self._asked = False
        if not files.is_local(self._folder):
            _warn(f"traces go to local folders only, not to {self._folder}")
            return
        try:
            jax.profiler.start_trace(str(self._folder))
        except Exception as error:
            _warn(f"no trace: {error}")
        else:
            self._last = step + self._steps - 1

    def ends_with(self, step: int) -> bool:
        """True if `step` is the last of the trace under way; it must be finished before `stop` is called."""
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
            print(f"trace written: tensorboard --logdir={self._folder}", file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    print(f"warning: profiler: {' '.join(text.split())}", file=sys.stderr, flush=True)
