"""Watches a session: reads each step's metrics, one step behind the devices, and reports how the run is going."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from lacy_jax.dataset import Batch, InputPipeline
from lacy_jax.errors import TrainingError
from lacy_jax.objectives import POLICIES
from lacy_jax.progress import Progress, Silent
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.clock import Clock
from lacy_jax.training.cloud import CloudRecorder
from lacy_jax.training.health import Health
from lacy_jax.training.metrics import MetricsWriter
from lacy_jax.training.profiling import Profiler
from lacy_jax.training.side_files import SideWriter
from lacy_jax.training.step import StepMetrics
from lacy_jax.training.throughput import ThroughputMeter, peak_flops

_COUNTS = ("tokens", "learned_tokens", "positions", "zero_factual_batches", "rewinds")
_PHASES = {"evaluating": "evaluation", "saving": "checkpoint"}


@dataclasses.dataclass(frozen=True)
class Rewind:
    """How a session ends after a loss spike if `train.on_spike` = "rewind"; the next session begins with it.

    Attributes:
      step: the step of the spike. what: the loss and the usual loss, for people.
      data: state of the input pipeline after that step's batch; the run continues there.
      count: how often the run has gone back, including this time.
    """

    step: int
    what: str
    data: dict[str, Any]
    count: int

    def __str__(self) -> str:
        return f"loss spike at step {self.step}: {self.what}"


class Watcher:
    """Owns the clock, the metrics, the health record and the profiler of a session; a context manager around it.

    Nothing is written before `begin`: a finished run is left as it is.

    Args:
      config: resolved.
      workdir: run directory.

    Attributes:
      clock: of the session, which begins when this object is made.
      side: writes files in the background.
      step: the last one dispatched.
      totals: running counts of the whole run, saved with checkpoints: `tokens` (valid targets), `learned_tokens`
        (ground-truth-gradient tokens; the x axis of an equal-token comparison), `positions`, `zero_factual_batches`,
        `rewinds`.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path):
        self.clock = Clock()
        self.step = self._start = 0
        self.totals = dict.fromkeys(_COUNTS, 0)
        self._config, self._workdir = config, workdir
        self.side = SideWriter(workdir)
        self._health = Health(config, workdir, self.clock, self.side)
        self._profiler = Profiler(config, workdir, self.side)
        self._cloud = CloudRecorder(config, workdir)
        self._closing = contextlib.ExitStack()
        self._pending: tuple[int, StepMetrics, dict[str, Any]] | None = None
        self._warned = False
        self._progress: Progress | Silent
        self._checkpointer: Checkpointer
        self._writer: MetricsWriter
        self._meter: ThroughputMeter

    def __enter__(self) -> Watcher:
        self._closing.enter_context(self.side)
        self._closing.enter_context(self._health)
        self._closing.enter_context(self._profiler)
        self._closing.enter_context(self._cloud)
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def begin(
        self,
        start: int,
        meta: dict[str, Any],
        rewind: Rewind | None,
        checkpointer: Checkpointer,
        position_flops: float,
        devices: int,
    ) -> str:
        """Begin a session that trains from step `start` on.

        Args:
          meta: record of the checkpoint it starts from; {} in a fresh run.
          rewind: the loss spike after which the session begins, if any.
          position_flops: model FLOPs of one position, forward and backward. devices: how many share the work.

        Returns:
          The hardware peak that utilisation is measured against, for people.

        Raises:
          TrainingError: the run has gone back too often.
        """
        self._start = self.step = start
        self._checkpointer = checkpointer
        self.totals |= meta.get("totals", {})
        self._health.usual_losses(meta.get("losses", []))
        self._health.begin(start)
        if rewind is not None:
            self.totals["rewinds"] = rewind.count
            most = self._config.train.max_rewinds
            if rewind.count > most:
                raise TrainingError(
                    f"{rewind}; the run went back {most} times before (config.train.max_rewinds); "
                    f"{checkpointer.describe_last()}; lower config.optimizer.learning_rate, or look at the data"
                )
            self._health.rewound(str(rewind), rewind.step, start, rewind.count)
        self._writer = self._closing.enter_context(
            contextlib.closing(MetricsWriter(self._workdir, self._config, self.side, start))
        )
        peak, source = peak_flops(self._config.metrics.peak_flops)
        again = (lambda: peak_flops()[0] * devices) if source == "measured" else None
        self._meter = ThroughputMeter(self.clock, position_flops, peak * devices, again)
        return f"{peak / 1e12:.3g} TFLOP/s per device ({source})"

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """A context around all steps: start-up is over, and the progress bar is shown."""
        self.clock.started()
        self._cloud.prepared()
        label, steps = f"train {self._config.name}", self._config.train.steps
        with (
            Progress(label, steps, "step", self._start)
            if jax.process_index() == 0
            else Silent() as self._progress
        ):
            yield

    # -- a step ------------------------------------------------------------------------------------------------------

    def next_batch(self, pipeline: InputPipeline) -> Batch | None:
        """The next batch of this host; None at the end of the input."""
        with self.clock.phase("input"), self._cloud.loading():
            batch = next(pipeline, None)
        self._health.bad_records = pipeline.bad_records
        return batch

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """A context around the call of a step: a requested trace begins, and the first call counts as compilation."""
        self.step = step
        self._profiler.before(step)
        self._cloud.step(step)
        with self.clock.phase("compile") if step == self._start + 1 else contextlib.nullcontext():
            yield

    def dispatched(self, step: int, metrics: StepMetrics, data: dict[str, Any]) -> Rewind | None:
        """Note that `step` is running, and meanwhile read the metrics of the step before.

        Args:
          metrics: of the step, on the devices.
          data: state of the input pipeline after its batch.

        Returns:
          The rewind that ends the session, if the step before was a loss spike and the config says rewind.

        Raises:
          TrainingError: the step before had a loss or gradient that is not finite, and the config says stop.
        """
        if rewind := self.catch_up():
            return rewind
        self._pending = (step, metrics, data)
        self._health.dispatched(step)
        if self._profiler.ends_with(step):
            rewind = self.catch_up()
            self._profiler.stop()
        return rewind

    def catch_up(self) -> Rewind | None:
        """Read the pending metrics; blocks until that step is done. Returns and raises like `dispatched`."""
        if self._pending is None:
            return None
        step, on_device, data = self._pending
        self._pending = None
        metrics: StepMetrics = jax.device_get(on_device)
        if not bool(metrics.finite):
            self._not_finite(step, metrics)
        else:
            spike = self._health.finished(step, float(metrics.loss.loss))
            if spike and self._config.train.on_spike == "rewind":
                self._health.state(self.step, "rewinding")
                return Rewind(step, spike, data, self.totals["rewinds"] + 1)
        self._count(step, metrics)
        if step % self._config.train.log_every == 0 or step == self._config.train.steps or step == 1:
            figures = {**self._values(metrics), **self._meter.report(), **self._health.figures()}
            self._write(step, "train", figures)
        self._progress.update(1, f"loss {float(metrics.loss.loss):.4f}")
        return None

    # -- what is done between steps ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def during(self, step: int, state: str) -> Iterator[None]:
        """A context around work between steps that may move arrays; `state` is "evaluating" or "saving"."""
        self._health.state(step, state)
        phase = _PHASES[state]
        with self.clock.phase(phase), self._cloud.pausing(phase), jax.transfer_guard("allow"):
            yield

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """`during` for a checkpoint of `step`."""
        self._writer.checkpointed()
        with self.during(step, "saving"):
            yield

    @property
    def last_metrics(self) -> dict[str, dict[str, Any]]:
        """The last metrics of each split in this session."""
        return self._writer.last

    def validated(self, step: int, figures: dict[str, float]) -> None:
        """Write the metrics of a validation."""
        self._write(step, "valid", figures)
        if not math.isfinite(figures.get("nll", 0.0)):
            print(
                f"warning: step {step}: validation nll {figures['nll']}: its checkpoint is never the best one",
                file=sys.stderr,
                flush=True,
            )

    def _write(self, step: int, split: str, figures: dict[str, float]) -> None:
        self._writer.write(step, split, figures)
        self._cloud.metrics(step, split, figures)

    def record(self) -> dict[str, Any]:
        """The state for a checkpoint, JSON-safe: the totals, and the losses that define the usual loss."""
        return {"totals": self.totals, "losses": self._health.losses}

    def ended(self, step: int, state: str) -> None:
        """End the session at `step`; `state` is "finished" or "stopped"."""
        self._health.state(step, state)
        self._cloud.ended()

    # -- one step's metrics --------------------------------------------------------------------------------------------

    def _not_finite(self, step: int, metrics: StepMetrics) -> None:
        what = f"step {step}: loss {float(metrics.loss.loss):.4g}, gradient norm {float(metrics.grad_norm):.4g}: not finite"
        if self._config.train.on_nan == "skip":
            in_row = int(metrics.skipped_in_row)
            if in_row <= self._config.train.max_skipped:
                print(f"warning: {what}; update dropped ({in_row} in a row)", file=sys.stderr, flush=True)
                return
            why = (
                f"{in_row} such steps in a row (config.train.max_skipped = {self._config.train.max_skipped})"
            )
        else:
            why = "the update was not applied"
        self._writer.write(step, "train", self._values(metrics))
        self._checkpointer.wait()
        raise TrainingError(
            f"{what}; {why}; {self._checkpointer.describe_last()}; lower config.optimizer.learning_rate, "
            "or set config.train.on_nan = 'skip' to leave such steps out"
        )

    def _count(self, step: int, metrics: StepMetrics) -> None:
        loss, inp = metrics.loss, self._config.input
        self.totals["positions"] += inp.batch_size * inp.seq_len
        if step == self._start + 1:
            self._meter.reset()  # The first step was mostly compilation.
        else:
            self._meter.count(int(loss.weight_sum), inp.batch_size * inp.seq_len)
        if not bool(metrics.finite):
            return
        self.totals["tokens"] += int(loss.weight_sum)
        self.totals["learned_tokens"] += int(loss.n_learned)
        if float(loss.factual_rate) == 0:
            self.totals["zero_factual_batches"] += 1
            if not self._warned and POLICIES[self._config.objective.policy].uses_call:
                self._warned = True
                print(
                    f"warning: step {step}: no factual target among the {int(loss.weight_sum)} of this batch; a policy that delegates "
                    "facts delegates nothing there (counted in zero_factual_batches; not repeated)",
                    file=sys.stderr,
                    flush=True,
                )

    def _values(self, metrics: StepMetrics) -> dict[str, float]:
        """All metrics except timings: they depend only on the run and are the same after a resume."""
        values = {name: float(getattr(metrics.loss, name)) for name in metrics.loss.present}
        values |= {"grad_norm": float(metrics.grad_norm), "learning_rate": float(metrics.learning_rate)}
        values |= {"skipped": float(metrics.skipped)}
        values |= {f"total_{name}": float(np.float64(value)) for name, value in self.totals.items()}
        return values
