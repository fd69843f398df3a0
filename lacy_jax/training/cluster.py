"""Joining the processes of a pod into one job, before any device is touched.

On Cloud TPU and on GKE the environment says who leads and how many there are; elsewhere one says it. Every wait has an
end: a process whose partners do not come, or go, ends with a clear line instead of hanging.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import jax

from lacy_jax.errors import ConfigError, TrainingError

AUTOMATIC = "auto"


def leave_at_once(status: int) -> NoReturn:
    """End this process without the farewell that JAX waits for from all others: after a failure it may never come.

    The others notice: their next exchange with this process fails, or its heartbeats stop (100 s).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def join_cluster(where: str, timeout_s: int = 600) -> None:
    """Join the other processes of this job; a process must do this before it asks for devices.

    Args:
      where: "auto" (Cloud TPU, GKE, Slurm: read from the environment), or "HOST:PORT,PROCESSES,INDEX".
      timeout_s: how long to wait for the others.

    Raises:
      ConfigError: `where` is neither.
      TrainingError: the others did not come in time, or the environment does not say where they are.
    """
    settings: dict[str, str | int] = {}
    if where != AUTOMATIC:
        parts = where.split(",")
        if len(parts) != 3 or ":" not in parts[0] or not (parts[1].isdigit() and parts[2].isdigit()):
            raise ConfigError(
                f"--distributed={where}: expected HOST:PORT,PROCESSES,INDEX, or nothing to read it from the environment"
            )
        count, index = int(parts[1]), int(parts[2])
        if index >= count:
            raise ConfigError(f"--distributed={where}: index {index} of {count} processes; the first is 0")
        settings = {"coordinator_address": parts[0], "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**settings, initialization_timeout=timeout_s)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = (
            "this machine does not say who else takes part; give --distributed=HOST:PORT,PROCESSES,INDEX"
            if where == AUTOMATIC
            else f"are all processes started, and can they reach {settings['coordinator_address']}?"
        )
        raise TrainingError(f"could not join the job within {timeout_s} s: {advice} ({reason})") from error
