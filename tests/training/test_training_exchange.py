"""What devices say to each other in a step, read from its program."""

from __future__ import annotations

import collections
import math
import re

import jax
import pytest
import training_small as small
from jax.sharding import Mesh

from lacy_jax.planning.collectives import collectives
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, abstract_state, state_shardings
from lacy_jax.training.step import make_train_step

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_sharded_optimiser_gathers_each_parameter_once(scan_layers):
    """Not for the forward and the backward pass apart. In a loop whole stacks before it, else each layer by itself."""
    options = {"train__accumulation": 2, "model__scan_layers": scan_layers}
    config = small.make_config("", train__shard_optimizer=True, **options)
    model, mesh = small.definition(config), small.mesh(8, 1, 1)
    gathers = [
        c
        for c in collectives(_program(config, model, mesh, length=24, rows=16), devices=8)
        if c.kind == "all-gather"
    ]
    assert all(c.executions == 1 for c in gathers)
    layers = model.config.n_layers
    stacks = [c for c in gathers if f"[{layers}," in c.shape]
    assert gathers
    assert bool(stacks) == scan_layers
    matrices = [leaf for leaf in jax.tree.leaves(model.abstract_params) if leaf.ndim > 1]
    assert sum(c.size for c in gathers) <= 4 * sum(leaf.size for leaf in matrices)


@pytest.mark.parametrize(("dtype", "sums_of_tables"), [("bfloat16", ["bf16", "bf16"]), ("float32", ["f32"])])
def test_the_gradient_of_a_table_is_exchanged_in_the_type_in_which_it_was_gathered(dtype, sums_of_tables):
    """Of the look-up and of the head, as a TPU is given it: of 16 bits a CPU makes 32. In float32 the compiler adds the look-up's."""
    config = small.make_config("", train__shard_optimizer=True, model__dtype=dtype)
    model, mesh = small.definition(config), small.mesh(4, 2, 1)
    text = _lowered(config, model, mesh, 24, 8, lowering_platforms=("tpu",)).as_text()
    sums = [line for line in text.split("stablehlo.all_reduce")[1:] if "tensor<304x64x" in line[:2000]]
    found = [re.search(r"tensor<304x64x(\w+)>", line)[1] for line in sums]
    assert found == sums_of_tables


def _lowered(config, model: ModelDefinition, mesh: Mesh, length: int, rows: int, **how) -> jax.stages.Lowered:
    tx, over_data = make_optimizer(config, model.axes), config.train.shard_optimizer
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh, over_data))
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(small.random_batch(rows, length=length), mesh)
        return step.trace(abstract_state(model, tx, mesh, over_data), batch, None).lower(**how)


def _program(config, model: ModelDefinition, mesh: Mesh, length: int, rows: int = 8) -> str:
    """The compiled step for `rows` of `length`, as text."""
    return _lowered(config, model, mesh, length, rows).compile().as_text()


def test_no_activation_is_gathered():
    """Devices exchange parameters, gradients and small sums, never the activations of other rows.

    Rows are 24 long here, a size nothing else has: no all-gather or all-to-all may have a dimension of 24.
    """
    config = small.make_config("")
    model, mesh = small.definition(config), small.mesh(4, 2, 1)
    text = _program(config, model, mesh, length=24)
    moved = re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute)\(", text)
    assert any(kind == "all-gather" for _, kind in moved), "fsdp must gather its parameters"
    shapes = [shape for result, _ in moved for shape in re.findall(r"\[([0-9,]*)\]", result)]
    assert not [shape for shape in shapes if "24" in shape.split(",")]


def test_logits_stay_where_they_are_and_the_head_is_not_gathered():
    """With the vocabulary split over `tensor`, only reductions over it travel: per token a maximum, a sum, a logit.

    The untied head [304, 64] lies in halves and is used in halves; its gradient, a half, is reduced over `data` alone.
    """
    config = small.make_config("", model__tie_head=False, input__batch_size=8)
    model, mesh = small.definition(config), small.mesh(2, 1, 2)
    text = _program(config, model, mesh, length=24)
    found = collectives(text, devices=4)
    sizes = [
        (c.kind, tuple(int(n) for n in shape.split(",") if n))
        for c in found
        for shape in re.findall(r"\[([\d,]*)\]", c.shape)
    ]
    assert sizes, "nothing is exchanged: this test looks in the wrong place"
    vocabulary = (small.VOCAB, small.VOCAB // 2)
    assert not [s for s in sizes if len(s[1]) >= 3 and s[1][-1] in vocabulary], "logits were exchanged"
    gathered = [c for c in found if c.kind == "all-gather" and str(small.VOCAB) in c.shape]
    assert len(gathered) <= 1, "beside the embedding, looked up by every device, the head was gathered"
    assert not any("objectives" in c.op_name for c in gathered)
    # The gradient of the embedding, looked up by every device, is reduced whole; that of the head is not.
    whole = [size for kind, size in sizes if kind == "all-reduce" and math.prod(size) > small.VOCAB // 2 * 64]
    assert len(whole) <= 1


def test_the_gradient_of_a_head_of_its_own_is_scattered_then_reduced():
    """Over `fsdp`, which splits the head, then over `data`; only that of the lookup is reduced whole."""
    config = small.make_config("", model__tie_head=False, input__batch_size=8)
    model, mesh = small.definition(config), small.mesh(2, 2, 1)
    found = collectives(_program(config, model, mesh, length=24), devices=4)
    whole, part = f"f32[{small.VOCAB},64]", f"f32[{small.VOCAB},32]"
    kinds = collections.Counter(
        (c.kind, shape) for c in found for shape in re.findall(r"f32\[[\d,]*\]", c.shape)
    )
    assert kinds["all-reduce", whole] == 1
    assert kinds["reduce-scatter", part] == kinds["all-reduce", part] == 1


def test_of_rows_on_several_devices_only_keys_and_values_are_gathered():
    """Per layer: keys and values there, their gradients back, and blocks of queries and outputs to and fro.

    Rows are 48 long and 12 a device: a gathered activation would have a dimension of 48. No hidden state [B, T, 64] and
    no logits [B, T, 304] has one; the head is whole on every device, so nothing of it moves but its gradient. Where layers are
    computed again (`model.remat`) keys and values are gathered again, too.
    """
    heads = {"model__n_heads": 4, "model__n_kv_heads": 2}
    config = small.make_config("", model__tie_head=False, model__remat="none", **heads)
    model, mesh = small.definition(config), small.mesh(1, 1, 1, sequence=4)
    text = _program(config, model, mesh, length=48)
    found = collectives(text, devices=4)
    layers, keys, block = model.config.n_layers, "f32[8,48,2,16]", "f32[8,6,4,16]"
    gathered = {
        c.shape: c.executions for c in found if c.kind == "all-gather" and not c.shape.startswith("s32")
    }
    assert set(gathered) == {keys}
    times = collections.Counter()
    for c in found:
        times[c.kind, c.shape] += c.executions
    assert times["all-gather", keys] == 2 * layers
    assert times["reduce-scatter", "f32[8,12,2,16]"] == 2 * layers
    assert times["collective-permute", block] == 8 * layers, (
        "two blocks of queries and of outputs, and their gradients"
    )
    assert {kind for kind, _ in times} == {"all-gather", "reduce-scatter", "collective-permute", "all-reduce"}
    reduced = [
        shape for c in found if c.kind == "all-reduce" for shape in re.findall(r"\[([\d,]*)\]", c.shape)
    ]
    assert not [shape for shape in reduced if "48" in shape.split(",") or "12" in shape.split(",")]
    mask = [c for c in found if "objectives" in c.op_name or c.shape.startswith("s32[16]")]
    assert all(c.size <= 64 for c in mask if c.kind == "all-reduce" and c.shape.startswith("s32"))
