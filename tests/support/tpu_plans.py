"""`lacy plan` with the real TPU compiler: small plans in one process, because the compiler takes long to load.

What the compiler made is kept, by all that it was given and by the code that asks it: two tests, or two runs of the suite, compile a
program once. JAX's own cache is off, because from there a program comes without what the compiler writes of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

import pytest
import warm_python

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = "experiments/paper_334m.py:smoke"
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (pip install 'lacy_jax[tpu]')",
)

# What the preset takes for speed is off: each plan says what it adds.
_BEFORE = f"""
import json
import re
import os
import pathlib
from lacy_jax import config
from lacy_jax.planning import ahead, plan, programs, tune
from lacy_jax.planning.collectives import collectives

kept = programs.Programs(pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "tpu")
compile_now, code = ahead.compile_lowered, pathlib.Path(ahead.__file__).read_text()
compiled = []

def compile_once(config, lowered, place):
    given = {{"code": code, "options": str(config.train.compiler_options), "chips": str(ahead.compiled_place(place))}}
    key = programs.program_key(lowered, given, place)
    found = (not FRESH and kept.get(key)) or compile_now(config, lowered, place)
    kept.put(key, found)
    compiled.append(found)
    return found

ahead.compile_lowered = tune.compile_lowered = compile_once
FRESH = False

# The smallest whose attention outgrows a chip's own memory and whose gradients the compiler scatters.
PAPER = ("input.seq_len=1024", "input.batch_size=16", "model.d_model=512", "model.d_ff=2048", "model.n_heads=8")
found = {{}}

def load(*overrides):
    plain = ["input.seq_len=256", "input.batch_size=4", "model.n_layers=1", "model.remat=full", "objective.chunk=0", "train.shard_optimizer=False"]
    return config.load_config("{SMOKE}", [*plain, *overrides])

def smoke(place, *overrides, slices=1):
    return plan.make_plan(load(*overrides), place, slices, search=False).to_dict()
"""


def compile_in_python(code: str) -> str:
    """What `code` prints; it is run in the repository, without the suite's own flags for XLA."""
    without_cache = "import jax; jax.config.update('jax_enable_compilation_cache', False)"
    done = warm_python.run(
        [sys.executable, "-c", f"{without_cache}\n{code}"], cwd=ROOT, env=environment(), timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment() -> dict[str, str]:
    """That of this process, without the suite's own flags for XLA."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def check_a_small_step(found: dict[str, Any]) -> None:
    """Of a plan of four chips, each with a part of the batch and all parameters."""
    assert (found["chips"], found["mesh"]) == (4, {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 1})
    # Parameters and two moments, float32, and the batch.
    assert found["memory_per_chip"]["arguments"] == pytest.approx(12 * found["parameters"], rel=0.1)
    assert found["memory_per_chip"]["temporaries"] > 0
    assert found["memory_per_chip"]["left"] > 0
    # Gradients are summed over the chips once, those of the layers' matrices in the compute type; each sends its ring share.
    halved = found["parameters_by_part"]["layer_matrices"] if found["model"]["dtype"] == "bfloat16" else 0
    assert found["collectives"]["all-reduce"]["array_bytes"] == pytest.approx(
        4 * found["parameters"] - 2 * halved, rel=0.05
    )
    assert found["roofline_s"]["step"] > 0
    assert 0 < found["utilisation_bound"] < 1
    assert found["compiler"]["libtpu"] != "unknown"


def make_plans(program: str) -> dict[str, Any]:
    """What `program` puts into `found`; it has `smoke(place, *overrides, slices=1)`, `load(*overrides)`, `PAPER`, `compiled` (what the
    compiler made, in order) and `FRESH` (to be set: nothing that was kept is taken)."""
    return json.loads(compile_in_python(f"{_BEFORE}\n{program}\nprint(json.dumps(found))"))
