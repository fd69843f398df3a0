"""The config group `health`: what a run watches of itself. None of it changes what is computed, so a resume may change it."""

from __future__ import annotations

import ml_collections

from lacy_jax.errors import ConfigError


def get_health_config() -> ml_collections.ConfigDict:
    """Defaults of the group."""
    health = ml_collections.ConfigDict()
    health.heartbeat_s = 30.0  # Least seconds between two writes of WORKDIR/heartbeat.json.
    health.window = (
        64  # Steps whose medians decide what is usual; nothing is judged before a quarter of them is seen.
    )
    health.slow_step = 3.0  # A step is an outlier if it takes this many times the median; 0 = off.
    health.loss_spike = 10.0  # A loss is a spike if it is this many deviations above the median; 0 = off.
    health.profile_start = 0  # First step of a profiler trace; 0 = none. SIGUSR1 asks for one at any time.
    health.profile_steps = 5  # Steps per trace.
    return health


def validate_health(health: ml_collections.ConfigDict) -> None:
    """Check the values of the group.

    Raises:
      ConfigError: the first field that is out of range, with what it should be.
    """
    bounds = {
        "heartbeat_s": (health.heartbeat_s < 0, "must be at least 0"),
        "window": (health.window < 8, "must be at least 8"),
        "slow_step": (health.slow_step != 0 and health.slow_step <= 1, "must be 0 (off) or above 1"),
        "loss_spike": (health.loss_spike < 0, "must be 0 (off) or positive"),
        "profile_start": (health.profile_start < 0, "must be 0 (none) or a step"),
        "profile_steps": (health.profile_steps < 1, "must be at least 1"),
    }
    for field, (refused, wants) in bounds.items():
        if refused:
            raise ConfigError(f"config.health.{field} = {health[field]!r}: {wants}")
