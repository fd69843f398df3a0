"""`lacy plan`: the search and its messages without a compiler, and one real compilation where libtpu is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError
from lacy_jax.models import flops_per_token, resolve_model_config
from lacy_jax.training import plan as plan_lib
from lacy_jax.training.ahead import (
    ROWS,
    DoesNotFit,
    Memory,
    largest_that_fits,
    read_messages,
    read_out_of_memory,
)
from lacy_jax.training.chips import CHIPS, GIB, parse_topology, roofline
from lacy_jax.training.collectives import Collective
from lacy_jax.training.plan import Plan, make_plan

_ROOT = pathlib.Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'lacy_jax[tpu]')"
)


def paper(arg: str = ""):
    return config_lib.load_config(f"{_ROOT}/experiments/paper_334m.py:{arg}")


@pytest.mark.parametrize(
    ("fixed", "per_row"), [(7.0, 0.4), (0.1, 0.001), (1.0, 5.0), (15.0, 0.5), (20.0, 1.0)]
)
@pytest.mark.parametrize("start", [1, 5, 8])
def test_search_finds_the_largest_and_asks_nothing_twice(fixed, per_row, start):
    asked = []

    def needed(rows):
        asked.append(rows)
        size = fixed + per_row * rows
        return size <= 15.75, round(size * 1000)

    found = largest_that_fits(needed, start, 15_750)
    assert found == max((r for r in {*ROWS, start} if fixed + per_row * r <= 15.75), default=0)
    assert len(asked) == len(set(asked)) <= 10


def test_out_of_memory_message_is_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (137.74G) exceeds available HBM (15.75G)."
    found = read_out_of_memory(text, 16 * GIB)
    assert (found.needed, found.available) == (int(137.74 * GIB), int(15.75 * GIB))
    assert read_out_of_memory("RESOURCE_EXHAUSTED: something else", 100).needed == 101


def a_plan(**changes) -> Plan:
    config = paper()
    model = resolve_model_config(config.model, 32_000, 1024)
    messages = [
        Collective("all-reduce", "f32[8]", 1000, 16, 3, False, ""),
        Collective("all-gather", "f32[8]", 500, 16, 1, False, ""),
    ]
    fields = {
        "name": "paper", "policy": "lacy", "topology": parse_topology("v5e-16"), "mesh": {"data": 16, "fsdp": 1, "tensor": 1},
        "model": model, "batch_size": 128, "seq_len": 1024, "accumulation": 1, "steps": 1000,
        "memory": Memory(4 * GIB, 3 * GIB, GIB, 16 * GIB), "messages": messages,
        "times": roofline(CHIPS["v5e"], 197e12, 0, 0, 0), "largest_batch": 256,
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def test_figures_follow_from_the_roofline():
    plan = a_plan()
    assert plan.memory.left == 8 * GIB
    assert plan.tokens_per_day == 128 * 1024 * 86_400
    assert plan.chip_hours == pytest.approx(1000 * 16 / 3600)
    assert plan.flops_per_step == flops_per_token(plan.model, 1024) * 128 * 1024
    assert plan.utilisation_bound == pytest.approx(plan.flops_per_step / (16 * 197e12))
    assert plan.by_kind()["all-reduce"] == {
        "executions": 3,
        "array_bytes": 3000,
        "sent_bytes": pytest.approx(3000 * 2 * 15 / 16),
        "dcn_bytes": 0,
    }
    assert json.loads(json.dumps(plan.to_dict()))["memory_per_chip"]["left"] == 8 * GIB
    text = plan.summary()
    assert "336.1 M" in text
    assert "8.00 of 16.00 GiB" in text
    assert "largest batch    256" in text


def test_a_program_that_cannot_be_printed_leaves_the_rest_of_the_plan():
    class Unprintable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    assert read_messages(Unprintable(), parse_topology("v5p-128")) is None
    plan = a_plan(messages=None)
    assert plan.to_dict()["collectives"] is None
    assert "collectives      not known" in plan.summary()


def test_too_big_says_what_to_change(monkeypatch):
    """A chip of 16 GB on which 5 rows a device fit: more micro-batches, or fewer sequences."""
    compiled = []

    def compile(config, model, mesh, place):
        rows = config.input.batch_size // 16
        compiled.append(rows)
        size = (4 + 2 * rows) * GIB
        if size > 14 * GIB:
            return DoesNotFit(size, 14 * GIB)
        return Memory(4 * GIB, 2 * rows * GIB, 0, 14 * GIB), None

    monkeypatch.setattr(plan_lib, "compile_step", compile)
    monkeypatch.setattr(plan_lib, "tpu_devices", lambda place: [])
    config = paper()
    with config.unlocked():
        config.input.batch_size = 128
    monkeypatch.setattr(
        plan_lib.sharding,
        "make_mesh",
        lambda *_: type("M", (), {"shape": {"data": 16, "fsdp": 1, "tensor": 1}})(),
    )
    with pytest.raises(ConfigError) as caught:
        make_plan(config, "v5e-16")
    message = str(caught.value)
    assert "config.input.batch_size = 128 does not fit: needs 20.0 GiB a chip of 14.00" in message
    assert "set config.train.accumulation=2, or lower it to 64" in message
    assert len(compiled) == len(set(compiled))


def test_without_libtpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"libtpu, which is not installed: pip install 'lacy_jax\[tpu\]'"):
        make_plan(paper(), "v5e-16")


def lacy_plan(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "lacy_jax.cli", "plan", *arguments], capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip


@needs_libtpu
def test_a_mesh_that_does_not_divide_is_one_line(tmp_path):
    done = lacy_plan(
        f"--config={_ROOT}/experiments/paper_334m.py:smoke", "--topology=v5e:4x4", "--config.mesh.fsdp=3"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "lacy plan: config.mesh: data=-1 x fsdp=3 x tensor=1 does not fit the 16"
    )
    done = lacy_plan(f"--config={_ROOT}/experiments/paper_334m.py:smoke", "--topology=v5e:4x4")
    assert done.returncode == 2
    assert "take a multiple of 16, or move devices to config.mesh.tensor" in done.stderr.splitlines()[-1]


@needs_libtpu
@pytest.mark.slow
def test_the_step_compiles_for_two_slices_and_only_small_things_cross():
    done = lacy_plan(
        f"--config={_ROOT}/experiments/paper_334m.py:smoke",
        "--topology=v5e:2x2",
        "--slices=2",
        "--no-search",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chips"], found["mesh"]) == (8, {"data": 8, "fsdp": 1, "tensor": 1})
    assert found["memory_per_chip"]["left"] > 0
    # Between slices a chip sends its share of the gradient, once, and the counts of the mask.
    assert 0 < found["collectives"]["slice-send"]["sent_bytes"] < 4 * found["parameters"]
    assert found["collectives"]["all-reduce"]["executions"] > 0
    assert 0 < found["utilisation_bound"] < 1
