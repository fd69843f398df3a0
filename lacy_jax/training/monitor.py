"""Reads the metrics of each step, one step behind the devices, and acts on them: log, warn, or stop the run."""

from __future__ import annotations

import dataclasses
import sys

import jax
import ml_collections
import numpy as np

from lacy_jax.errors import TrainingError
from lacy_jax.objectives import POLICIES
from lacy_jax.progress import Progress
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.health import Health
from lacy_jax.training.metrics import MetricsWriter
from lacy_jax.training.step import StepMetrics
from lacy_jax.training.throughput import ThroughputMeter


class Monitor:
    """Context manager around the steps of a session; shows the progress bar.

    `dispatched` is called with each step's metrics while that step still runs: it keeps them, and reads those of the
    step before.

    Attributes:
      totals: running counts of the whole run, saved with checkpoints: `tokens` (valid targets), `learned_tokens`
        (ground-truth-gradient tokens; the x axis of an equal-token comparison), `positions`, `zero_factual_batches`,
        `rewinds`.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        writer: MetricsWriter,
        meter: ThroughputMeter,
        checkpointer: Checkpointer,
        health: Health,
        totals: dict[str, int],
        start: int,
    ):
        self._config, self._writer, self._meter, self._checkpointer = config, writer, meter, checkpointer
        self._health = health
        counts = ("tokens", "learned_tokens", "positions", "zero_factual_batches", "rewinds")
        self.totals = {**dict.fromkeys(counts, 0), **totals}
        self._pending: tuple[int, StepMetrics] | None = None
        self._warned = False
        self._progress: Progress | None = None
        self._start = start

    def __enter__(self) -> Monitor:
        if jax.process_index() == 0:
            label = f"train {self._config.name}"
            self._progress = Progress(label, self._config.train.steps, unit="step", initial=self._start)
            self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)

    def dispatched(self, step: int, metrics: StepMetrics) -> None:
        """Note that `step` is under way; read the one before.

        Raises:
          TrainingError: the step before had a loss or gradient that is not finite, and the config says stop.
          LossSpike: its loss is a spike, and the config says rewind.
        """
        self.catch_up()
        self._pending = (step, metrics)

    def catch_up(self) -> None:
        """Read what is pending; blocks until that step is done. Raises as `dispatched`."""
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        metrics: StepMetrics = jax.device_get(on_device)
        if not bool(metrics.finite):
            self._not_finite(step, metrics)
        else:
            self._health.finished(step, float(metrics.loss.loss))
        self._count(step, metrics)
        if step % self._config.train.log_every == 0 or step == self._config.train.steps or step == 1:
            self._writer.write(
                step, "train", {**self._values(metrics), **self._meter.report(), **self._health.figures()}
            )
        if self._progress is not None:
            self._progress.update(1, f"loss {float(metrics.loss.loss):.4f}")

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
            self._meter.count(int(loss.n_valid), inp.batch_size * inp.seq_len)
        if not bool(metrics.finite):
            return
        self.totals["tokens"] += int(loss.n_valid)
        self.totals["learned_tokens"] += int(loss.n_learned)
        if float(loss.factual_rate) == 0:
            self.totals["zero_factual_batches"] += 1
            if not self._warned and POLICIES[self._config.objective.policy].uses_call:
                self._warned = True
                print(
                    f"warning: step {step}: no factual target among the {int(loss.n_valid)} of this batch; a policy that delegates "
                    "facts delegates nothing there (counted in zero_factual_batches; not repeated)",
                    file=sys.stderr,
                    flush=True,
                )

    def _values(self, metrics: StepMetrics) -> dict[str, float]:
        """Everything but timings: a function of the run alone, the same after a resume."""
        values = {f.name: float(getattr(metrics.loss, f.name)) for f in dataclasses.fields(metrics.loss)}
        values |= {"grad_norm": float(metrics.grad_norm), "learning_rate": float(metrics.learning_rate)}
        values |= {"skipped": float(metrics.skipped)}
        values |= {f"total_{name}": float(np.float64(value)) for name, value in self.totals.items()}
        return values
