"""The record of a run's environment: hardware, software, command."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from typing import Any

import jax
from etils import epath

import lacy_jax
from lacy_jax import files
from lacy_jax.registry import plugins_in_use
from lacy_jax.run_files import ENVIRONMENT_FILE
from lacy_jax.setup import versions

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "array_record", "sentencepiece",
    "numpy", "scipy",
)  # fmt: skip


def describe_environment(start_step: int) -> dict[str, Any]:
    """Versions, git commit, plugins with the sha256 of their files, devices, command line, and the session's first step."""
    device = jax.devices()[0]
    return {
        "start_step": start_step,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "lacy_jax": lacy_jax.__version__,
        "git": versions.source_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "plugins": plugins_in_use(),
        "packages": {name: versions.version(name) for name in _PACKAGES},
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def record_environment(workdir: epath.PathLike, session: dict[str, Any]) -> None:
    """Append a session (`describe_environment`) to WORKDIR/environment.json, a list with one entry per start or resume.

    Raises whatever the storage raises.
    """
    path = epath.Path(workdir) / ENVIRONMENT_FILE
    try:
        sessions = json.loads(path.read_text()) if path.exists() else []
    except ValueError:
        sessions = []  # The file cannot be read; nothing depends on it.
    if session not in sessions:  # Otherwise an earlier attempt succeeded although it seemed to fail.
        files.write_json(path, [*sessions, session])
