"""What the benchmarks of the train step share: sides that take turns, and the machine that they are measured on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lacy_jax.errors import LacyError


class Turns(NamedTuple):
    """Seconds of every call of every side, by the clock and of processor time (all threads)."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def median(self, side: str) -> float:
        return statistics.median(self.wall[side])


def take_turns(sides: dict[str, Callable[[], Any]], repeats: int) -> Turns:
    """Call every side `repeats` times, one warm-up call apart; the order reverses every round."""
    for call in sides.values():
        jax.block_until_ready(call())
    turns = Turns({name: [] for name in sides}, {name: [] for name in sides})
    order = list(sides)
    for _ in range(repeats):
        for name in order:
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(sides[name]())
            turns.wall[name].append(time.perf_counter() - start)
            turns.cpu[name].append(time.process_time() - start_cpu)
        order.reverse()
    return turns


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios of calls made in the same round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(number: int) -> None:
    """Keep the process on its first `number` processors; XLA and PyTorch then take as many threads.

    Raises:
      LacyError: there are not so many, or the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise LacyError(f"--threads={number}: this system cannot pin a process to processors")
    if not 0 < number <= threads():
        raise LacyError(f"--threads={number}: this process may use 1 to {threads()} processors")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def processor() -> str:
    """The name of the processor as the system has it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the two sides' packages."""
    names = ("jax", "jaxlib", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Four digits of every figure."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return rounded(value)
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {name: one(value) for name, value in figures.items()}
