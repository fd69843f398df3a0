"""`lacy plan` with the real TPU compiler: small plans in one process, because the compiler takes long to load."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = "experiments/paper_334m.py:smoke"
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (pip install 'lacy_jax[tpu]')",
)

# What the preset takes for speed is off: each plan says what it adds.
_BEFORE = f"""
import json
import re
from lacy_jax import config
from lacy_jax.planning import ahead, plan
from lacy_jax.planning.collectives import collectives

PAPER = ("input.batch_size=16", "model.d_model=512", "model.d_ff=2048", "model.n_heads=8")
found = {{}}

def load(*overrides):
    plain = ["input.seq_len=1024", "input.batch_size=4", "model.n_layers=1", "model.remat=full", "objective.chunk=0", "train.shard_optimizer=False"]
    return config.load_config("{SMOKE}", [*plain, *overrides])

def smoke(place, *overrides, slices=1):
    return plan.make_plan(load(*overrides), place, slices, search=False).to_dict()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the repository, without the suite's own flags for XLA."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=_ROOT, capture_output=True, text=True, env=environment, timeout=3000
    )


def make_plans(program: str) -> dict[str, Any]:
    """What `program` puts into `found`; it has `smoke(place, *overrides, slices=1)`, `load(*overrides)` and `PAPER`."""
    done = python("-c", f"{_BEFORE}\n{program}\nprint(json.dumps(found))")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
