"""XLA flags of the tests. Most of the suite's time is LLVM's: what tests compile runs once or twice and need not be fast.

tests/test_tutorial.py compiles as users do.
"""

from __future__ import annotations


def flags(devices: int = 1) -> str:
    """XLA_FLAGS of a process that simulates so many devices."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
