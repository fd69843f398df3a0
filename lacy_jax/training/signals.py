"""Graceful stop: SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context manager that turns SIGTERM and the first SIGINT into a flag.

    A second SIGINT raises KeyboardInterrupt. Handlers are restored on exit. Outside the main thread Python allows no
    handlers, so the run cannot be stopped this way.

    With several processes, JAX's preemption service handles SIGTERM: the processes agree on a common step to stop at,
    because a checkpoint needs all of them at the same step.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        print(f"{self.signal_name}: finishing this step, then saving", file=sys.stderr, flush=True)

    def reached(self, step: int) -> bool:
        """Whether the run should save and stop after `step`. All processes must call it with the same steps."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal_name = "SIGTERM"
                return True
            return False
        return bool(self.signal_name)
