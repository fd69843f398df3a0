"""The clock of a session: how much of its wall time goes into steps, and how much into other phases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PHASES = ("startup", "compile", "input", "checkpoint", "evaluation")


class Clock:
    """Counts seconds per phase from its construction on; time outside all phases is time in steps.

    `compile` is the call of the first step, which compiles it or reads it from the compilation cache. `input` is the
    time that the host waited for a batch; devices may still have been busy with the step before, so goodput is a lower
    bound. A checkpoint that is written in the background counts only while the loop waits for it.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def started(self) -> None:
        """Count all time until now as start-up, except for the phases already counted."""
        self.seconds["startup"] = self.elapsed() - sum(self.seconds.values())

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in this block as phase `name`; blocks must not be nested."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def elapsed(self) -> float:
        """Seconds since the construction."""
        return time.perf_counter() - self._begin

    def training(self) -> float:
        """Seconds so far in steps and waiting for their input."""
        return self.elapsed() - sum(self.seconds.values()) + self.seconds["input"]

    def shares(self) -> dict[str, float]:
        """`goodput` and each phase as shares of the wall time so far; they add up to 1."""
        total = max(self.elapsed(), 1e-9)
        shares = {name: seconds / total for name, seconds in self.seconds.items()}
        return {"goodput": max(1.0 - sum(shares.values()), 0.0), **shares}

    def describe(self) -> str:
        """One line for people."""
        shares = self.shares()
        rest = ", ".join(f"{name} {shares[name]:.1%}" for name in PHASES)
        return f"goodput {shares['goodput']:.1%} of {self.elapsed():.1f} s; {rest}"
