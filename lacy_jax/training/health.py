"""Health of a running session: heartbeat, goodput, unusual step times, loss spikes, device memory.

It only observes: nothing here touches the state of the run, waits for a device or changes what a step computes.
"""

from __future__ import annotations

import collections
import contextlib
import json
import statistics
import sys
import time
from typing import Any

import jax
import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.run_files import EVENTS_FILE, HEARTBEAT_FILE
from lacy_jax.training.clock import Clock
from lacy_jax.training.goodput import describe_goodput, last_heartbeat, run_goodput
from lacy_jax.training.side_files import GrowingFile, SideWriter

_WARNINGS = 5  # Warnings of each kind on the terminal; the file has all of them.


class Health:
    """Context manager around a session. Only process 0 writes.

    WORKDIR/heartbeat.json is rewritten each time: `step` (dispatched last), `time` (Unix seconds), `state` (starting,
    training, evaluating, saving; at the end finished, stopped, rewinding or failed) and the shares of `Clock`.
    WORKDIR/health.jsonl gets one line per event: `begin` with the last heartbeat of the session before, `slow_step`,
    `loss_spike`, `rewind`, and `session` at the end.

    Args:
      config: its group `health` is read.
      workdir: run directory.
      clock: the session's clock.
      side: writes the files in the background.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: epath.Path, clock: Clock, side: SideWriter
    ):
        self._config, self._workdir, self._clock, self._side = config.health, workdir, clock, side
        self._events = GrowingFile(lambda part: workdir / EVENTS_FILE, part_bytes=2**40)  # Events are few.
        self._active = jax.process_index() == 0
        self._step, self._state, self._written = 0, "starting", 0.0
        self._start, self._began = 0, time.time() - clock.elapsed()
        self._begun = False
        self._times: collections.deque[float] = collections.deque(maxlen=self._config.window)
        self._losses: collections.deque[float] = collections.deque(maxlen=self._config.window)
        self._last: float | None = None  # When the last step was read, in seconds of training.
        self.counts = {"slow_step": 0, "loss_spike": 0}
        self.bad_records = 0  # Records of the dataset left out in this session; set by the watcher.

    def __enter__(self) -> Health:
        return self

    def begin(self, step: int) -> None:
        """Start writing: the session trains from `step` on. A run that is already finished never gets here."""
        self._begun, self._start = True, step
        if self._active:
            before = last_heartbeat(self._workdir)
            self._describe_run()
            self._event({"event": "begin", "step": step, "time": self._began, "before": before})
        if self._active and files.is_local(self._workdir):
            for orphan in self._workdir.glob(f".{HEARTBEAT_FILE}.*.tmp"):  # From a session killed in a write.
                orphan.unlink(missing_ok=True)
        self.state(step, "starting")

    def _describe_run(self) -> None:
        with contextlib.suppress(Exception):  # It is only for people.
            if shares := run_goodput(self._workdir):
                print(f"so far: {describe_goodput(shares)}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._begun:
            return
        if kind is not None:
            self._state = "failed"
        self._beat()
        if self._last is not None and self._active:
            self._event(
                {
                    "event": "session",
                    **self._standing(),
                    **self.counts,
                    "bad_records": self.bad_records,
                }
            )
            counts = f"{self.counts['slow_step']} slow steps, {self.counts['loss_spike']} loss spikes"
            print(f"{self._clock.describe()}; {counts}", file=sys.stderr, flush=True)

    def state(self, step: int, name: str) -> None:
        """Enter a state, and write the heartbeat at once."""
        self._step, self._state = step, name
        self._beat()

    def dispatched(self, step: int) -> None:
        """Note that a step was dispatched; the heartbeat is written if the last write is old enough."""
        changed, self._step, self._state = self._state != "training", step, "training"
        if changed or time.monotonic() - self._written >= self._config.heartbeat_s:
            self._beat()

    @property
    def losses(self) -> list[float]:
        """The losses that define what is usual; with them a resumed run detects the same spikes."""
        return list(self._losses)

    def usual_losses(self, losses: list[float]) -> None:
        """Go on from the `losses` of a checkpoint."""
        self._losses.extend(losses)

    def rewound(self, spike: str, step: int, to: int, count: int) -> None:
        """Note the `count`-th rewind: the run goes back `to` a step because of the `spike` at `step`."""
        if self._active:
            self._event({"event": "rewind", "step": step, "to": to, "count": count, "time": time.time()})
            print(
                f"warning: {spike}; back to step {to}, skipping the batches since then (rewind {count})",
                file=sys.stderr,
                flush=True,
            )

    def finished(self, step: int, loss: float) -> str:
        """Judge a step that was read, by its time since the previous one and its (finite) loss.

        Returns:
          A description of the loss spike; "" if it is none.
        """
        now = self._clock.training()
        if self._last is not None:
            self._judge_time(step, now - self._last)
        self._last = now
        return self._judge_loss(step, loss)

    def figures(self) -> dict[str, float]:
        """Figures for a line of metrics: `goodput` of the session so far, `device_memory_peak_gib` if the backend reports
        it, and `bad_records` if any were left out."""
        bad = {"bad_records": float(self.bad_records)} if self.bad_records else {}
        return {"goodput": self._clock.shares()["goodput"], **device_memory(), **bad}

    def _judge_time(self, step: int, seconds: float) -> None:
        factor = self._config.slow_step
        if factor and 4 * len(self._times) >= self._config.window:
            usual = statistics.median(self._times)
            if seconds > factor * usual:
                self._report(
                    "slow_step", step, f"took {seconds:.3g} s, usually {usual:.3g} s", seconds, usual
                )
        self._times.append(seconds)

    def _judge_loss(self, step: int, loss: float) -> str:
        factor = self._config.loss_spike
        if factor and 4 * len(self._losses) >= self._config.window:
            usual = statistics.median(self._losses)
            # For normally distributed losses, 1.4826 times the median distance is one standard deviation.
            deviation = 1.4826 * statistics.median(abs(x - usual) for x in self._losses)
            if loss > usual + factor * max(deviation, 1e-3 * abs(usual)):
                what = f"loss {loss:.4g}, usually {usual:.4g}"
                self._report("loss_spike", step, what, loss, usual)
                return what  # Spikes do not count as usual losses.
        self._losses.append(loss)
        return ""

    def _report(self, kind: str, step: int, text: str, value: float, usual: float) -> None:
        self.counts[kind] += 1
        if not self._active:
            return
        self._event({"event": kind, "step": step, "value": value, "usual": usual, "time": time.time()})
        if self.counts[kind] <= _WARNINGS:
            more = f" (further ones only in {EVENTS_FILE})" if self.counts[kind] == _WARNINGS else ""
            print(f"warning: {kind}: step {step} {text}{more}", file=sys.stderr, flush=True)

    def _standing(self) -> dict[str, Any]:
        session = {"begun": self._began, "start": self._start}
        now = {"step": self._step, "time": time.time(), "state": self._state}
        return {**now, **session, **self._clock.shares()}

    def _beat(self) -> None:
        self._written = time.monotonic()
        if not self._active:
            return
        beat = self._standing()
        path = self._workdir / HEARTBEAT_FILE
        self._side.submit("heartbeat", lambda: files.write_json(path, beat))

    def _event(self, event: dict[str, Any]) -> None:
        self._events.add((json.dumps(event) + "\n").encode())
        self._side.submit("health", self._events.write)


def device_memory() -> dict[str, float]:
    """`device_memory_peak_gib`: peak of the fullest local device since the process began; {} if it is not reported."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"device_memory_peak_gib": max(peaks) / 2**30} if peaks else {}
