"""`lacy plan` with the real TPU compiler, on a machine without a TPU: a tiny model on every kind of chip."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tpu_plans import NEEDS_LIBTPU, ROOT, SMOKE, check_a_small_step, environment, make_plans

pytestmark = NEEDS_LIBTPU

# Arguments of the command for 16 chips, and how its one line begins or ends.
_REFUSED = [
    (
        [f"--config={SMOKE}", "--config.mesh.fsdp=3"],
        "config.mesh: data=-1 x fsdp=3 x sequence=1 x tensor=1 does not fit the 16",
    ),
    ([f"--config={SMOKE}"], "choose a multiple of 16, or move devices to config.mesh.tensor"),
    (
        [f"--config={SMOKE}", "--config.train.quantization=fp8"],
        "config.train.quantization = 'fp8': v5e multiplies no fp8; use 'int8' or 'none'",
    ),
    (
        [f"--config={SMOKE}", "--config.input.batch_size=16", "--no-search", "--config.train.compiler_options=('no_such=1',)"],
        "config.train.compiler_options = ('no_such=1',): INVALID_ARGUMENT: No such compile option: 'no_such'",
    ),
    (
        ["--config=experiments/paper_1b3.py", "--config.mesh.fsdp=1", "--no-search"],
        "does not fit: needs 23.7 GiB a chip of 15.75; raise config.mesh.fsdp (now 1)",
    ),
]  # fmt: skip
_PLANS = """
import contextlib
import io
import tempfile
from lacy_jax import cli

def refused(arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["plan", "--topology=v5e:4x4", *arguments])
    return code, out.getvalue(), err.getvalue()

found["refused"] = [refused(arguments) for arguments in REFUSED]
found |= {place: smoke(place) for place in ("v4-8", "v5p-8")}
found["cube"] = smoke("v5p-128", "input.batch_size=64", "train.shard_optimizer=True")
found["slices"] = smoke("v5e:2x4", "input.batch_size=16", slices=2)
# Asked here is what is exchanged and kept, and by which kernel. The compiler needs a fifth of the time at this level; what it makes is slower.
level = jax.config.jax_optimization_level
jax.config.update("jax_optimization_level", "O1")
for name in ("auto", "xla"):
    found[name] = smoke("v5e:2x2", *PAPER, f"model.attention={name}")
found["sharded window"] = smoke("v5e:2x2", *PAPER, "model.sliding_window=(256,)", "train.shard_optimizer=True")
narrow = ("input.seq_len=1024", "input.batch_size=8", "model.d_model=256", "model.d_ff=1024", "model.n_heads=4")
found["rows"] = smoke("v5e:2x2", *narrow, "model.dtype=bfloat16", "mesh.sequence=4")
jax.config.update("jax_optimization_level", level)

with tempfile.TemporaryDirectory() as folder:
    found["tuned"] = [tune.tune(load(), "v5e:2x2", folder, compilations=2).to_dict()]
    tune.compile_lowered = None  # Nothing is compiled twice.
    found["tuned"].append(tune.tune(load(), "v5e:2x2", folder, compilations=2).to_dict())

described = ahead._described
def older_libtpu(place):
    if place.chip.name == "tpu7x":
        raise RuntimeError("unknown")
    return described(place)
found["known"] = smoke("tpu7x:2x2x1", "input.batch_size=8")
ahead._described = older_libtpu
found["unknown"] = smoke("tpu7x:2x2x1", "input.batch_size=8")
ahead._described = described
""".replace("REFUSED", repr([arguments for arguments, _ in _REFUSED]))
# In a process of its own, so that the oldest stack compiles this alone.
_SMALLEST = r"""
FRESH = True
written = ahead.program_text
def both(program, folder):
    text = written(program, folder)
    found["same_text"] = collectives(text, 4) == collectives(program.as_text(), 4) != []
    report = next(folder.glob("*memory-usage-report.txt")).read_text()
    found["exact"] = hasattr(program.memory_analysis(), "total_allocation_bytes")  # jax 0.12
    found["laid_out"] = int(re.search(r"\(color=0\)\nTotal bytes: (\d+)", report)[1])
    return text
ahead.program_text = both
found["v5e:2x2"] = smoke("v5e:2x2")
"""


@pytest.fixture(scope="module")
def smallest() -> dict:
    return make_plans(_SMALLEST)


@pytest.fixture(scope="module")
def plans(smallest) -> dict:  # One of its programs is that of `smallest`.
    return make_plans(_PLANS)


@pytest.mark.parametrize("place", ["v4-8", "v5p-8"])
def test_the_step_compiles_for_every_kind_of_chip(plans, place):
    """For a v5e below, for a v6e in test_plan_tpu_quantized.py."""
    check_a_small_step(plans[place])


@pytest.mark.oldest
def test_the_step_compiles_for_a_v5e_and_the_compilers_own_text_says_what_jax_says(smallest):
    found = smallest["v5e:2x2"]
    check_a_small_step(found)
    assert 0 < found["clock_s"]["lower_bound"] <= found["clock_s"]["step"]
    assert smallest["same_text"] is True
    memory = found["memory_per_chip"]
    counted = memory["arguments"] + memory["temporaries"]
    assert counted == smallest["laid_out"] if smallest["exact"] else counted > smallest["laid_out"]


def test_a_sharded_optimiser_is_held_in_parts_and_its_parameters_are_gathered_once(plans):
    split, whole = plans["sharded window"], plans["auto"]
    arguments = [found["memory_per_chip"]["arguments"] for found in (split, whole)]
    assert arguments[0] == pytest.approx(arguments[1] / 4, rel=0.1)
    gathered = split["collectives"]["all-gather"]["array_bytes"]
    assert gathered == pytest.approx(
        4 * split["parameters"], rel=0.5
    )  # The layers' matrices in the compute type.
    assert split["collectives"]["reduce-scatter"]["array_bytes"] == pytest.approx(
        4 * split["parameters"], rel=0.05
    )
    assert "reduce-scatter" not in whole["collectives"]


def test_a_cube_is_a_torus_over_which_the_compiler_gathers(plans):
    """Over a slice that is open at its ends it would sum arrays of zeros instead."""
    found = plans["cube"]
    assert (found["chips"], found["mesh"]["data"]) == (64, 64)
    assert found["collectives"]["all-gather"]["array_bytes"] > 2 * found["parameters"]


def test_splash_is_the_attention_of_a_tpu_and_needs_less_memory(plans):
    fast, portable = plans["auto"], plans["xla"]
    assert (fast["model"]["attention"], portable["model"]["attention"]) == ("splash", "xla")
    assert fast["memory_per_chip"]["temporaries"] < portable["memory_per_chip"]["temporaries"]


def test_the_compilers_clock_sees_every_phase_and_the_attention_kernel(plans, smallest):
    """The names reach the compiled program, at either level of the compiler: else all would be "other"."""
    for found in (plans["auto"], smallest["v5e:2x2"]):
        clock = found["clock_s"]
        named = {"embedding", "attention", "mlp", "loss", "mask", "optimizer"}
        assert named <= set(clock["by_phase"])
        assert clock["by_phase"]["other"] < 0.3 * clock["step"]
        assert clock["by_work"]["attention kernel"] > 0
        assert not clock["without_estimate"]
        assert 0 < found["utilisation"] < found["utilisation_bound"]
    assert "attention kernel" not in plans["xla"]["clock_s"]["by_work"]


def test_a_sliding_window_compiles_to_splash_and_counts_as_less_work(plans):
    windowed, full = plans["sharded window"], plans["auto"]
    assert windowed["model"]["attention"] == "splash"
    attention = 12 * 8 * 64 * (1024 - 256) * 16 * 1024
    assert full["flops_per_step"] - windowed["flops_per_step"] == pytest.approx(attention)


def test_rows_on_several_chips_exchange_keys_and_values_in_the_compute_dtype(plans):
    found = plans["rows"]
    assert found["mesh"] == {"data": 1, "fsdp": 1, "sequence": 4, "tensor": 1}
    assert found["model"]["attention"] == "splash"
    # One layer: keys and values of 8 rows, bfloat16, forward and (remat) again backward; little else is gathered.
    keys = 2 * 2 * 8 * 1024 * 256 * 2
    assert keys <= found["collectives"]["all-gather"]["array_bytes"] < 1.1 * keys
    # Their gradients are scattered as they are summed: no chip gets those of a whole row.
    assert keys / 2 <= found["collectives"]["reduce-scatter"]["array_bytes"] < 1.1 * keys / 2
    assert found["collectives"]["all-reduce"]["array_bytes"] < 1.05 * 4 * found["parameters"]
    # Two blocks of queries and two of outputs a chip, an eighth of a row each: forward, again, and their gradients.
    blocks = 3 * 4 * 8 * 128 * 256 * 2
    assert blocks <= found["collectives"]["collective-permute"]["array_bytes"] < 1.1 * blocks


def test_a_chip_unknown_to_the_compiler_has_a_plan_near_the_compilers_own(plans):
    known, by_table = plans["known"], plans["unknown"]
    for found in (known, by_table):
        assert found["roofline_s"]["memory"] <= found["clock_s"]["lower_bound"] <= found["clock_s"]["step"]
    assert (known["compiled_for"], by_table["compiled_for"]) == ("tpu7x:2x2x1", "v5p:2x2x2")
    assert by_table["topology"] == "tpu7x:2x2x1"
    for name in ("chips", "mesh", "parameters", "flops_per_step"):
        assert by_table[name] == known[name]
    assert by_table["memory_per_chip"]["available"] == known["memory_per_chip"]["available"]
    assert by_table["memory_per_chip"]["arguments"] == pytest.approx(
        known["memory_per_chip"]["arguments"], rel=0.02
    )
    assert by_table["roofline_s"]["compute"] == known["roofline_s"]["compute"]
    assert by_table["collectives"]["all-reduce"]["array_bytes"] == pytest.approx(
        known["collectives"]["all-reduce"]["array_bytes"], rel=0.05
    )
    assert by_table["clock_s"]["step"] == pytest.approx(known["clock_s"]["step"], rel=0.5)


def test_a_search_for_faster_settings_compiles_each_program_once(plans, smallest):
    """The second search finds what the first has compiled; the estimates are those of the plan."""
    first, second = plans["tuned"]
    assert first == second
    assert (first["programs"], first["spent"]) == (2, True)
    assert first["start"]["step_s"] == pytest.approx(smallest["v5e:2x2"]["clock_s"]["step"], rel=1e-3)
    assert {row["settings"]["model.scan_layers"] for row in first["best"]} == {True, False}
    assert first["best"][0]["step_s"] <= first["start"]["step_s"]


def test_two_slices_exchange_gradients_and_the_counts_of_the_mask_only(plans):
    found = plans["slices"]
    assert (found["chips"], found["mesh"]["data"]) == (16, 16)
    # Between slices a chip sends its share of the gradient, once, and the counts of the mask.
    assert 0 < found["collectives"]["slice-send"]["sent_bytes"] < 4 * found["parameters"]
    assert found["collectives"]["all-reduce"]["executions"] > 0


def test_the_command_prints_the_plan_with_the_largest_batch(tmp_path):
    """In a process that has loaded nothing before; it looks for no TPU, and keeps no program that JAX could not read back."""
    command = [
        sys.executable,
        "-m",
        "lacy_jax.cli",
        "plan",
        f"--config={SMOKE}",
        "--topology=v5e:2x2",
        "--json",
    ]
    cached = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quick = {"JAX_OPTIMIZATION_LEVEL": "O1"}  # As above: half of the compiler's time.
    kept = {name: value for name, value in environment().items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [*command, "--config.model.n_layers=1"],
        cwd=ROOT,
        env=kept | cached | quick,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["largest_batch"] >= 8
    assert "TPU" not in done.stderr, done.stderr
    assert not [path.name for path in tmp_path.iterdir() if "train_step" in path.name]


@pytest.mark.parametrize("case", range(len(_REFUSED)))
def test_the_impossible_is_one_line_that_says_what_to_change(plans, case):
    code, out, err = plans["refused"][case]
    assert (code, out) == (2, "")
    assert _REFUSED[case][1] in err.splitlines()[-1]
