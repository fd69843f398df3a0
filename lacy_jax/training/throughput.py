"""Speed of a run: tokens per second, share of the hardware's peak, share of the time spent waiting for input."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lacy_jax.training.chips import chip_of
from lacy_jax.training.clock import Clock


def peak_flops(override: float = 0.0) -> tuple[float, str]:
    """Peak FLOP/s of one device, and the source of the figure: "config", "table" or "measured".

    Args:
      override: `config.metrics.peak_flops`; 0 = look up the chip, or time a matmul if it is unknown.
    """
    if override > 0:
        return override, "config"
    chip = chip_of(jax.local_devices()[0].device_kind)
    if chip is not None:
        return chip.peak_flops, "table"
    # On a CPU all devices of the process share the cores, so each gets a share of the measured figure.
    return measured_matmul_flops() / len(jax.local_devices()), "measured"


_best_measured: dict[int, float] = {}


def measured_matmul_flops(size: int = 1024, repeats: int = 5) -> float:
    """The practical peak of an unknown device: FLOP/s of the fastest float32 matmul of `size` timed in this process.

    It times `repeats` more. Other work on the machine makes matmuls only slower, so the fastest one counts.
    """
    with jax.transfer_guard("allow"):  # It may be called between steps.
        a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        flops = 2.0 * size**3 / (time.perf_counter() - start)
        _best_measured[size] = max(_best_measured.get(size, 0.0), flops)
    return _best_measured[size]


class ThroughputMeter:
    """Counts work and time between two reports.

    Args:
      clock: the session's clock.
      flops_per_position: model FLOPs of one position, forward and backward.
      peak_flops_total: peak FLOP/s of all devices together.
      measure_again: measures that figure again, if it was measured, because the machine may have been busy.
    """

    def __init__(
        self,
        clock: Clock,
        flops_per_position: float,
        peak_flops_total: float,
        measure_again: Callable[[], float] | None = None,
    ):
        self._clock, self._flops = clock, flops_per_position
        self._peak, self._measure_again = peak_flops_total, measure_again
        self.reset()

    def reset(self) -> None:
        """Reset the counts; the next report covers the time from now on."""
        self._start, self._waited = self._clock.training(), self._clock.seconds["input"]
        self._tokens = self._positions = self._steps = 0

    def count(self, tokens: int, positions: int) -> None:
        """Count a finished step of `tokens` valid targets in `positions` = B * T positions."""
        self._tokens += tokens
        self._positions += positions
        self._steps += 1

    def report(self) -> dict[str, float]:
        """Figures since the last report or reset; resets the counts. Validation and checkpoints do not count as time.

        `tokens_per_s`: valid targets per second (without padding). `mfu`: model FLOP/s of all positions, including
        padding because the hardware computes it too, as a share of the peak; left out if it exceeds a measured peak, which
        must then be too low. `input_wait_share`: share of the time that the host waited for a batch; devices may still have
        been busy, so it is an upper bound of the loss. `step_s`: seconds per step. Empty if no step was finished.
        """
        seconds = self._clock.training() - self._start
        waited = self._clock.seconds["input"] - self._waited
        if not self._steps or seconds <= 0:
            return {}
        found = {
            "tokens_per_s": self._tokens / seconds,
            "mfu": self._mfu(self._flops * self._positions / seconds),
            "input_wait_share": min(waited / seconds, 1.0),
            "step_s": seconds / self._steps,
        }
        if found["mfu"] > 1.0 and self._measure_again is not None:
            del found["mfu"]
        self.reset()
        return found

    def _mfu(self, flops: float) -> float:
        if flops > 0.8 * self._peak and self._measure_again is not None:
            self._peak = max(self._peak, self._measure_again())
        return flops / self._peak
