"""`lacy plan` without a compiler: the search, its figures and its messages. With one: test_training_plan_tpu.py."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import runpy

import pytest

from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError
from lacy_jax.models import count_params, flops_per_token, resolve_model_config
from lacy_jax.planning import ahead
from lacy_jax.planning import plan as plan_lib
from lacy_jax.planning.ahead import (
    DoesNotFit,
    Memory,
    program_text,
    read_out_of_memory,
)
from lacy_jax.planning.clock import Clock, Part
from lacy_jax.planning.collectives import Collective
from lacy_jax.planning.fit import ROWS, largest_that_fits
from lacy_jax.planning.plan import make_plan
from lacy_jax.planning.result import Plan
from lacy_jax.planning.slices import TPUS, parse_topology, roofline
from lacy_jax.training.chips import GIB

_ROOT = pathlib.Path(__file__).resolve().parents[2]


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
        Collective("all-reduce", "f32[8]", 1000, tuple(range(16)), 3, 0, False, ""),
        Collective("all-gather", "f32[8]", 500, tuple(range(16)), 1, 0, False, ""),
    ]
    fields = {
        "name": "paper", "policy": "lacy", "topology": parse_topology("v5e-16"), "compiled": parse_topology("v5e-16"), "mesh": {"data": 16, "fsdp": 1, "tensor": 1},
        "model": model, "batch_size": 128, "seq_len": 1024, "accumulation": 1, "steps": 1000, "quantization": "none",
        "trained": count_params(model), "flops_per_token": flops_per_token(model, 1024),
        "memory": Memory(4 * GIB, 3 * GIB, GIB, 16 * GIB), "messages": messages,
        "times": roofline(TPUS["v5e"], 197e12, 0, 0, 0), "clock": Clock([Part("dot", "matmul", "mlp", 1.5, 24, 1.2)], 0.5, 0.1, 1e9, 0.01, ("ragged",)), "largest_batch": 256,
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def test_figures_follow_from_the_roofline():
    plan = a_plan()
    assert plan.memory.left == 8 * GIB
    assert plan.tokens_per_day == 128 * 1024 * 86_400
    assert plan.chip_hours == pytest.approx(1000 * 16 / 3600)
    assert plan.flops_per_step == flops_per_token(plan.model, 1024) * 128 * 1024
    assert plan.utilisation_bound == pytest.approx(plan.flops_per_step / (16 * 197e12))
    assert plan.to_dict()["collectives"]["all-reduce"] == {
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
    assert (
        "compiler's clock 2000.0 ms a step, MFU 5 % (lower bound 1700.0 ms): matmul 1500.0, collectives 500.0"
        in text
    )
    assert "by phase       mlp 1500.0; without an estimate: ragged" in text


def test_a_chip_that_the_compiler_does_not_know_is_planned_by_the_table(monkeypatch):
    """With the program of as many devices of its stand-in; the plan says so."""
    asked = []

    def described(place):
        asked.append(place.layout)
        if place.chip.name == "tpu7x":
            raise RuntimeError("INVALID_ARGUMENT: Unrecognized platform tpu7x")

    monkeypatch.setattr(ahead, "_described", described)
    for place, stand_in in (
        ("tpu7x:2x2x1", "v5p:2x2x2"),
        ("tpu7x:2x2x2", "v5p:2x2x4"),
        ("tpu7x:4x4x4", "v5p:4x4x8"),
    ):
        found = ahead.compiled_place(parse_topology(place))
        assert (found.layout, found.devices) == (stand_in, parse_topology(place).devices)
    two = ahead.compiled_place(parse_topology("tpu7x:4x4x4", 2))
    assert (str(two), two.devices) == ("v5p:4x4x8 x 2 slices", 256)
    assert ahead.compiled_place(parse_topology("v5e:4x4")).layout == "v5e:4x4"
    assert "v5e:4x4" not in asked, "of other chips the compiler has the last word"
    with pytest.raises(
        ConfigError, match=r"tpu7x:16x16x32: libtpu .* does not know tpu7x, and v5p, .* no slice of 16384"
    ):
        ahead.compiled_place(parse_topology("tpu7x:16x16x32"))
    with pytest.raises(ConfigError, match="the TPU compiler refuses it: INVALID_ARGUMENT"):
        ahead.tpu_devices(parse_topology("tpu7x:2x2x1"))
    monkeypatch.setattr(ahead, "_described", lambda place: None)
    assert ahead.compiled_place(parse_topology("tpu7x:2x2x1")).layout == "tpu7x:2x2x1"

    plan = a_plan(topology=parse_topology("tpu7x:2x2x2"), compiled=parse_topology("v5p:2x2x4"))
    assert (plan.to_dict()["topology"], plan.to_dict()["compiled_for"]) == ("tpu7x:2x2x2", "v5p:2x2x4")
    assert (
        "does not know tpu7x: the program is that of v5p:2x2x4, the speeds are those of tpu7x"
        in plan.summary()
    )
    assert "by the table" not in a_plan().summary()


def test_a_clock_for_another_chip_has_its_speeds():
    parts = [
        Part("a", "matmul", "mlp", 4.0, 1, 4.0),
        Part("b", "copy", "mlp", 3.0, 2, 1.0),
        Part("c", "attention kernel", "mlp", 2.0, 1, 2.0),
    ]
    ours, theirs = TPUS["tpu7x"], TPUS["v5p"]
    found = Clock(parts, 1.0, 0.5, 1e9, 0.25).on(ours, theirs)
    assert {part.name: part.seconds for part in found.parts} == pytest.approx(
        {"a": 4 * 459 / 1153.5, "b": 3 * 2765 / 3690, "c": 2 * (459e12 / 262_144) / (1153.5e12 / 524_288)}
    )
    assert (found.collectives_s, found.hbm_bytes) == (1.0, 1e9)
    assert (found.hidden_s, found.hbm_s) == pytest.approx((0.5 * 2765 / 3690, 0.25 * 2765 / 3690))


def test_the_program_is_read_as_the_compiler_wrote_it(tmp_path):
    class Program:
        def as_text(self):
            return "from JAX"

    assert program_text(Program(), tmp_path) == "from JAX"
    (tmp_path / "module_0001.step.after_optimizations.txt").write_text("too early")
    (tmp_path / "module_0001.step.after_codegen.txt").write_text("from the compiler")
    assert program_text(Program(), tmp_path) == "from the compiler"


@pytest.fixture
def pretended(monkeypatch):
    """`refuse(size)`: a compiler on chips of 14 GiB for which a step needs size(rows a device, fsdp, remat, accumulation, sequence)
    GiB; gives the list of what it was asked."""

    def refuse(size):
        asked = []

        def compile(config, model, mesh, place):
            fsdp, accumulation = mesh.shape["fsdp"], config.train.accumulation
            rows = config.input.batch_size / 16  # A device's, or as much of more rows cut by `sequence`.
            question = (rows, fsdp, config.model.remat, accumulation, mesh.shape["sequence"])
            asked.append(question)
            needed = round(size(*question) * GIB)
            if needed > 14 * GIB:
                return DoesNotFit(needed, 14 * GIB)
            return (Memory(needed, 0, 0, 14 * GIB), "")

        def mesh(config, devices):
            fsdp, sequence = config.fsdp, config.sequence
            shape = {"data": 16 // fsdp // sequence, "fsdp": fsdp, "sequence": sequence, "tensor": 1}
            return type("M", (), {"shape": shape})()

        monkeypatch.setattr(plan_lib, "compile_step", compile)
        monkeypatch.setattr(plan_lib, "tpu_devices", lambda place: [])
        monkeypatch.setattr(plan_lib, "compiled_place", lambda place: place)
        monkeypatch.setattr(plan_lib.sharding, "make_mesh", mesh)
        return asked

    return refuse


def refusal(search: bool = True, **changes) -> str:
    config = paper()
    with config.unlocked():
        config.update_from_flattened_dict({"input.batch_size": 128, **changes})
    with pytest.raises(ConfigError) as caught:
        make_plan(config, "v5e-16", search=search)
    return str(caught.value)


def test_too_big_says_which_mesh_fits_and_which_batch(pretended):
    """Half of the memory is parameters: split in four they leave room."""
    asked = pretended(lambda rows, fsdp, remat, accumulation, sequence: 12 / fsdp + rows)
    message = refusal()
    assert "config.input.batch_size = 128 does not fit: needs 20.0 GiB a chip of 14.00" in message
    assert "--config.mesh.data=-1 --config.mesh.fsdp=2 does, with the same batch" in message
    assert "; --config.input.batch_size=32 does, the largest on this mesh" in message
    assert len(asked) == len(set(asked))


def test_too_big_says_to_recompute_or_accumulate(pretended):
    pretended(lambda rows, fsdp, remat, accumulation, sequence: 2 + rows * (1 if remat == "full" else 9))
    assert "--config.model.remat=full does, with the same batch" in refusal(**{"model.remat": "none"})
    pretended(lambda rows, fsdp, remat, accumulation, sequence: 2 + 3 * rows / accumulation)
    assert "--config.train.accumulation=2" in refusal()


def test_too_big_says_first_to_put_layers_one_by_one_into_a_loop(pretended):
    unrolled = {"model.scan_layers": False, "model.remat": "none"}
    pretended(lambda rows, fsdp, remat, accumulation, sequence: 2 + rows * (9 if remat == "none" else 1))
    in_a_loop = "--config.model.scan_layers=True --config.model.remat=dots"
    assert f"{in_a_loop} does, with the same batch" in refusal(**unrolled)
    # Whatever else is needed comes with it.
    pretended(lambda rows, fsdp, remat, accumulation, sequence: (30 if remat == "none" else 20) / fsdp)
    split = "--config.mesh.data=-1 --config.mesh.fsdp=2"
    assert f"{split} {in_a_loop} does, with the same batch" in refusal(**unrolled)
    # Without a search the same is named, with what the config recomputes.
    pretended(lambda *_: 99)
    assert f"take {in_a_loop}, set config.model.remat='full'" in refusal(False, **unrolled)
    full = refusal(False, **{**unrolled, "model.remat": "full"})
    assert "take --config.model.scan_layers=True --config.model.remat=full, lower the batch" in full
    assert "scan_layers" not in refusal(False)


def test_too_big_says_to_cut_long_rows(pretended):
    """A row is too much for a device, whatever is done with the parameters."""
    asked = pretended(lambda rows, fsdp, remat, accumulation, sequence: 2 + 40 / sequence)
    message = refusal(**{"input.seq_len": 32768, "model.max_seq_len": 32768, "input.batch_size": 16})
    assert "--config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.sequence=4" in message
    assert "does, with the same batch" in message
    assert {question[-1] for question in asked} == {1, 2, 4}


def test_too_big_for_anything_says_so_and_no_search_only_names_the_fields(pretended):
    asked = pretended(lambda *_: 99)
    assert "take a larger slice or a smaller model" in refusal()
    asked = pretended(lambda *_: 99)
    message = refusal(search=False)
    assert len(asked) == 1
    assert "raise config.mesh.fsdp (now 1)" in message
    assert "--no-search" in message
    assert "set config.model.remat='full' (now 'none'), lower the batch" in refusal(
        False, **{"model.remat": "none"}
    )
    assert "remat" not in refusal(False, **{"model.remat": "full"})


@pytest.mark.parametrize("benchmark", ["plan", "tpu_paths", "tpu_loss", "tune", "tpu_clock"])
def test_the_tables_of_the_docs_are_those_of_the_stored_results(benchmark):
    """To update: run the benchmark, and put what it prints into docs/plan.md."""
    docs = (_ROOT / "docs" / "plan.md").read_text()
    for table in runpy.run_path(str(_ROOT / "benchmarks" / f"{benchmark}.py"))["table"]().split("\n\n"):
        assert table in docs


def test_the_table_has_all_rows_and_every_figure_of_them():
    script = runpy.run_path(str(_ROOT / "benchmarks" / "plan.py"))
    assert len(script["ROWS"]) == 8
    for row in script["ROWS"]:
        found = json.loads(script["stored"](row).read_text())
        assert found["batch_size"] == 128
        assert found["largest_batch"] >= 128 or found["largest_batch"] == 0  # Not searched.
        assert found["memory_per_chip"]["left"] > 0
        assert (
            sum(kind["array_bytes"] for kind in found["collectives"].values())
            > found["parameters"] / found["chips"]
        )
        assert found["limit"] in ("compute", "memory", "ici")
        assert found["token_budget"] == 400_000 * 128 * 1024
        assert found["roofline_s"]["step"] <= found["clock_s"]["lower_bound"] <= found["clock_s"]["step"]


def test_both_sides_of_the_comparison_have_our_shapes_and_one_compiler(tmp_path, monkeypatch):
    """MaxText's steps of docs/results/plan/clock/ are those of today's presets, in its words."""
    script = runpy.run_path(str(_ROOT / "benchmarks" / "tpu_clock.py"))
    asked = [(shape, row) for shape in script["SHAPES"] for row in script["ROWS"]]
    stored = {cell: json.loads(script["stored"](*cell).read_text()) for cell in asked if script["stored"](*cell).exists()}  # fmt: skip
    assert {
        ("334m_llama_v5e-16", row) for row in ("ours_preset", "maxtext_defaults", "maxtext_tuned")
    } <= set(stored)
    for (name, row), found in stored.items():
        shape = script["SHAPES"][name]
        config = config_lib.load_config(str(_ROOT / shape.config))
        model = resolve_model_config(config.model, config.tokenizer.vocab_size, config.input.seq_len)
        flops = flops_per_token(model, config.input.seq_len) * config.input.batch_size * config.input.seq_len
        more = script["more_of"](shape, row)
        assert tuple(found["more"]) == more
        assert found["flops_per_step"] == flops
        assert not found["clock_s"]["without_estimate"]
        if script["ROWS"][row].maxtext:
            rows = config.input.batch_size // parse_topology(shape.topology).devices
            assert found["keys"] == script["maxtext_keys"](
                shape.topology, model, rows, config.input.seq_len, more
            )
        else:
            assert found["mesh"]["fsdp"] == config.mesh.fsdp
            changed = config_lib.load_config(str(_ROOT / shape.config), more)
            for field in ("remat", "scan_layers", "dtype"):
                assert found["model"][field] == changed.model[field]
    other = {**stored["334m_llama_v5e-16", "ours_preset"], "compiler": {"jax": "0.1", "libtpu": "0.1"}}
    monkeypatch.setitem(script["table"].__globals__, "RESULTS", tmp_path)
    for (name, row), found in {**stored, ("334m_llama_v5e-16", "ours_preset"): other}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{row}.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="rows of different compilers"):
        script["table"]()


def test_without_libtpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"libtpu, which is not installed: pip install 'lacy_jax\[tpu\]'"):
        make_plan(paper(), "v5e-16")
