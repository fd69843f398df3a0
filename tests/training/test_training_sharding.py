"""The mesh and the rule table; the same step on one device and on many, and what they say to each other meanwhile."""

from __future__ import annotations

import collections
import itertools
import math
import re

import jax
import numpy as np
import pytest
import training_small as small
from jax.sharding import Mesh

from lacy_jax.config import changed, get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.planning.collectives import collectives
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import ModelDefinition, abstract_state, init_state, state_shardings
from lacy_jax.training.step import make_train_step

pytestmark = pytest.mark.oldest


def _mesh(data: int, fsdp: int, tensor: int, sequence: int = 1) -> Mesh:
    config = get_default_config()
    config.mesh.update({"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor})
    count = data * fsdp * sequence * tensor if data > 0 else 8
    return sharding.make_mesh(config.mesh, jax.devices()[:count])


def test_mesh_fills_the_open_axis():
    assert dict(_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(_mesh(-1, 1, 2, sequence=4).shape) == {"data": 1, "fsdp": 1, "sequence": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data=3 x fsdp=1 x sequence=1 x tensor=1 does not fit the 8 devices"),
        ((-1, 3, 1), "does not fit the 8 devices"),
        ((-1, -1, 1), "only one of data, fsdp may be -1"),
        ((0, 1, 1), "config.mesh.data = 0: must be at least 1"),
    ],
)
def test_impossible_meshes_are_refused(sizes, message):
    config = get_default_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = sizes
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(config.mesh, jax.devices())


def test_rules_place_a_matrix_on_both_axes():
    mesh = _mesh(2, 2, 2)
    assert sharding.partition_spec(("embed", "heads", "head_dim"), (64, 4, 16), mesh) == jax.P(
        "fsdp", "tensor"
    )
    assert sharding.partition_spec(("layers", "feature"), (2, 64), mesh) == jax.P()
    assert sharding.partition_spec(("vocab", "embed"), (304, 64), mesh) == jax.P("tensor", "fsdp")
    assert sharding.partition_spec(("vocab", "embed"), (304, 64), _mesh(8, 1, 1)) == jax.P()


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(
        ConfigError, match=r"blocks/x: two dimensions of \('heads', 'mlp'\) would lie on mesh axis 'tensor'"
    ):
        sharding.partition_spec(("heads", "mlp"), (4, 8), _mesh(2, 2, 2), "blocks/x")


def test_indivisible_dimension_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"config.mesh.tensor = 2 does not divide vocab = 303 of embedding"):
        sharding.partition_spec(("vocab", "embed"), (303, 64), _mesh(2, 2, 2), "embedding")


def test_too_few_kv_heads_are_replicated():
    assert sharding.partition_spec(("embed", "kv_heads", "head_dim"), (64, 1, 16), _mesh(2, 2, 2)) == jax.P(
        "fsdp"
    )


def test_unknown_logical_axis_is_refused():
    with pytest.raises(ConfigError, match="logical axis 'colour' has no rule"):
        sharding.partition_spec(("colour",), (4,), _mesh(2, 2, 2))


# Where every parameter of a llama with grouped queries lies on 2 x 2 x 2 devices. Update it by hand, when a parameter
# or a rule is meant to change: what is not split here costs memory on every device.
GOLDEN_LLAMA = {
    "blocks/attention_norm/scale": jax.P(),
    "blocks/attention_out": jax.P(None, "tensor", None, "fsdp"),
    "blocks/key": jax.P(None, "fsdp"),
    "blocks/mlp_gate": jax.P(None, "fsdp", "tensor"),
    "blocks/mlp_in": jax.P(None, "fsdp", "tensor"),
    "blocks/mlp_norm/scale": jax.P(),
    "blocks/mlp_out": jax.P(None, "tensor", "fsdp"),
    "blocks/query": jax.P(None, "fsdp", "tensor"),
    "blocks/value": jax.P(None, "fsdp"),
    "call": jax.P(),
    "embedding": jax.P("tensor", "fsdp"),
    "final_norm/scale": jax.P(),
}

# The same of a gpt2 with an untied head: biases of the wide layers are split with what they are added to.
GOLDEN_GPT2 = {
    "blocks/attention_norm/bias": jax.P(),
    "blocks/attention_norm/scale": jax.P(),
    "blocks/attention_out": jax.P(None, "tensor", None, "fsdp"),
    "blocks/attention_out_bias": jax.P(),
    "blocks/key": jax.P(None, "fsdp", "tensor"),
    "blocks/key_bias": jax.P(None, "tensor"),
    "blocks/mlp_in": jax.P(None, "fsdp", "tensor"),
    "blocks/mlp_in_bias": jax.P(None, "tensor"),
    "blocks/mlp_norm/bias": jax.P(),
    "blocks/mlp_norm/scale": jax.P(),
    "blocks/mlp_out": jax.P(None, "tensor", "fsdp"),
    "blocks/mlp_out_bias": jax.P(),
    "blocks/query": jax.P(None, "fsdp", "tensor"),
    "blocks/query_bias": jax.P(None, "tensor"),
    "blocks/value": jax.P(None, "fsdp", "tensor"),
    "blocks/value_bias": jax.P(None, "tensor"),
    "call": jax.P(),
    "embedding": jax.P("tensor", "fsdp"),
    "final_norm/bias": jax.P(),
    "final_norm/scale": jax.P(),
    "head": jax.P("tensor", "fsdp"),
    "position": jax.P(None, "fsdp"),
}


def _definition(config) -> ModelDefinition:
    return ModelDefinition(small.model_config(config))


@pytest.mark.parametrize(
    ("golden", "model_fields"),
    [
        (GOLDEN_LLAMA, {"model__family": "llama", "model__n_kv_heads": 1}),
        (GOLDEN_GPT2, {"model__family": "gpt2", "model__tie_head": False}),
    ],
    ids=["llama", "gpt2"],
)
def test_golden_parameter_shardings(golden, model_fields):
    """`sequence` and `data` hold whole parameters: their sizes change nothing."""
    config = small.make_config("", **model_fields)
    model = _definition(config)
    for mesh in (_mesh(2, 2, 2), _mesh(1, 2, 2, sequence=2)):
        found = sharding.parameter_shardings(model.abstract_params, model.axes, mesh)
        specs = {
            jax.tree_util.keystr(path, simple=True, separator="/"): place.spec
            for path, place in jax.tree.flatten_with_path(found)[0]
        }
        assert specs == golden


def test_optimiser_moments_lie_with_their_parameters_and_nothing_is_whole():
    config = small.make_config("")
    model, mesh = _definition(config), _mesh(2, 2, 2)
    tx = make_optimizer(config, model.axes)
    state = init_state(model, tx, mesh, seed=0)
    adam = next(part for part in state.opt_state if hasattr(part, "mu"))
    for moment in (adam.mu, adam.nu):
        for a, b in zip(jax.tree.leaves(moment), jax.tree.leaves(state.params), strict=True):
            assert a.sharding == b.sharding
    embedding = state.params["embedding"]
    assert embedding.addressable_shards[0].data.shape == (small.VOCAB // 2, 64 // 2)
    shardings = state_shardings(model, tx, mesh)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_initialisation_does_not_depend_on_the_mesh():
    config = small.make_config("")
    model = _definition(config)
    tx = make_optimizer(config, model.axes)
    one = init_state(model, tx, _mesh(1, 1, 1), seed=3).params
    eight = init_state(model, tx, _mesh(2, 2, 2), seed=3).params
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)


def test_batch_must_divide_over_devices():
    config = small.make_config("", input__batch_size=8, train__accumulation=2)
    with pytest.raises(
        ConfigError, match=r"a micro-batch has 4 sequences .* data x fsdp = 8 devices cannot share evenly"
    ):
        sharding.check_batch_shape(config, _mesh(4, 2, 1))


def test_rows_must_divide_over_the_devices_that_share_them():
    config = small.make_config("", input__seq_len=36)
    sharding.check_batch_shape(config, _mesh(2, 1, 2, sequence=2))
    with pytest.raises(
        ConfigError, match=r"config.input.seq_len = 36: config.mesh.sequence = 4 splits rows into 8"
    ):
        sharding.check_batch_shape(config, _mesh(2, 1, 1, sequence=4))


def test_put_batch_splits_rows_over_data_and_fsdp_and_each_over_sequence():
    batch = small.random_batch(rows=8)
    length = batch.tokens.shape[1]
    for mesh, shape in ((_mesh(2, 2, 2), (2, length)), (_mesh(2, 1, 2, sequence=2), (4, length // 2))):
        placed = sharding.put_batch(batch, mesh)
        assert placed.tokens.sharding.spec == jax.P(("data", "fsdp"), "sequence")
        assert placed.tokens.addressable_shards[0].data.shape == shape
        np.testing.assert_array_equal(np.asarray(placed.tokens), batch.tokens)


# Every way to spread 2, 4 or 8 devices over data, fsdp, tensor and sequence; the fast suite takes some that between them
# use every axis, alone and with each other.
_ALL_SIZES = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) in (2, 4, 8)]
_QUICK_SIZES = [(4, 2, 1, 1), (4, 1, 2, 1), (1, 1, 1, 4), (1, 2, 2, 2)]


@pytest.mark.parametrize(
    "sizes",
    [*_QUICK_SIZES, *(pytest.param(s, marks=pytest.mark.slow) for s in _ALL_SIZES if s not in _QUICK_SIZES)],
)
def test_same_step_on_several_devices_as_on_one(sizes):
    """The mask must be the same tokens, the loss and the update the same numbers up to rounding."""
    heads = {"model__n_heads": 8} if sizes[2] > 2 else {}
    config = small.make_config("", objective__policy="lacy", train__accumulation=1, **heads)
    batch = small.random_batch(rows=8, length=32)
    (one_state, one), (many_state, many) = (
        small.run_step(config, _mesh(*s), batch, steps=2) for s in ((1, 1, 1), sizes)
    )
    assert int(many.loss.n_called) == int(one.loss.n_called) > 0
    assert int(many.loss.weight_sum) == int(one.loss.weight_sum)
    for name in ("loss", "call_loss", "learn_loss", "threshold", "nll_called", "nll_factual"):
        assert float(getattr(many.loss, name)) == pytest.approx(float(getattr(one.loss, name)), rel=2e-5), (
            name
        )
    assert float(many.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-4)
    # Adam divides by the root of the second moment, so a gradient near zero may turn rounding into a visible update.
    for a, b in zip(jax.tree.leaves(one_state.params), jax.tree.leaves(many_state.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((8, 1, 1), {}),
        ((8, 1, 1), {"model__dtype": "bfloat16"}),
        ((2, 2, 2), {"train__accumulation": 2, "objective__mask_scope": "step"}),
        ((4, 2, 1), {"train__trainable": ("call", "blocks.-1.*"), "optimizer__name": "muon"}),
        ((2, 2, 2), {"model__dtype": "bfloat16", "model__tie_head": False}),
    ],
)
def test_a_sharded_optimiser_makes_the_same_step_from_an_eighth_of_the_state(sizes, options):
    """`train.shard_optimizer`: masks, metrics and parameters of two steps are those without it; each device holds its part."""
    config, batch = small.make_config("", **options), small.random_batch()
    mesh = _mesh(*sizes)
    whole, usual = small.run_step(config, mesh, batch, steps=2)
    split, found = small.run_step(changed(config, {"train.shard_optimizer": True}), mesh, batch, steps=2)
    assert int(found.loss.n_called) == int(usual.loss.n_called) > 0
    assert float(found.loss.loss) == pytest.approx(float(usual.loss.loss), rel=2e-5)
    rounding = 1e-2 if options.get("model__dtype") == "bfloat16" else 1e-4
    assert float(found.grad_norm) == pytest.approx(float(usual.grad_norm), rel=rounding)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=10 * rounding * 2e-1)
    matrices = [leaf for leaf in jax.tree.leaves((split.params, split.opt_state)) if leaf.ndim > 2]
    parts = sizes[0] * sizes[1]
    assert all(leaf.addressable_shards[0].data.size * parts <= leaf.size for leaf in matrices)


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "expected"),
    [
        # The outermost dimension but the layers, so that the parts that are gathered follow each other in memory.
        (("vocab", "embed"), (304, 64), (8, 1, 1), jax.P("data")),
        (("layers", "embed", "mlp"), (2, 64, 256), (8, 1, 1), jax.P(None, "data")),
        (("layers", "heads", "head_dim", "embed"), (2, 8, 16, 64), (8, 1, 1), jax.P(None, "data")),
        (("layers", "mlp", "embed"), (2, 256, 64), (2, 2, 2), jax.P(None, ("tensor", "data"), "fsdp")),
        # Heads are outside in memory wherever they stand.
        (("layers", "embed", "kv_heads", "head_dim"), (2, 64, 8, 16), (8, 1, 1), jax.P(None, None, "data")),
        (("layers", "embed", "heads", "head_dim"), (2, 64, 8, 16), (2, 2, 2), jax.P(None, "fsdp", ("tensor", "data"))),
        # The next that can be split where that one cannot.
        (("layers", "heads", "head_dim", "embed"), (2, 4, 16, 64), (8, 1, 1), jax.P(None, None, None, "data")),
        (("vocab", "embed"), (301, 64), (4, 2, 1), jax.P(None, ("fsdp", "data"))),
        (("vocab", "embed"), (301, 60), (8, 1, 1), jax.P()),
        # Vectors are whole on every device; so is everything where there is nothing to split over.
        (("layers", "heads", "head_dim"), (2, 8, 16), (8, 1, 1), jax.P()),
        (("vocab", "embed"), (304, 64), (1, 8, 1), jax.P(None, "fsdp")),
    ],
)  # fmt: skip
def test_a_sharded_optimiser_splits_the_outermost_dimension(axes, shape, sizes, expected):
    whole = jax.ShapeDtypeStruct(shape, np.float32)
    found = sharding.parameter_shardings({"w": whole}, {"w": axes}, _mesh(*sizes), over_data=True)
    assert found["w"].spec == expected


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_sharded_optimiser_gathers_each_parameter_once(scan_layers):
    """Not for the forward and the backward pass apart. In a loop whole stacks before it, else each layer by itself."""
    options = {"train__accumulation": 2, "model__scan_layers": scan_layers}
    config = small.make_config("", train__shard_optimizer=True, **options)
    model, mesh = _definition(config), _mesh(8, 1, 1)
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gradient_of_a_table_is_exchanged_in_the_type_in_which_it_was_gathered(dtype):
    """As a TPU is given it: of 16 bits a CPU makes 32."""
    config = small.make_config("", train__shard_optimizer=True, model__dtype=dtype)
    model, mesh = _definition(config), _mesh(4, 2, 1)
    text = _lowered(config, model, mesh, 24, 8, lowering_platforms=("tpu",)).as_text()
    sums = [line for line in text.split("stablehlo.all_reduce")[1:] if "tensor<304x64x" in line[:2000]]
    found = [re.search(r"tensor<304x64x(\w+)>", line)[1] for line in sums]
    assert found == [{"bfloat16": "bf16", "float32": "f32"}[dtype]] * 2, "of the look-up and of the head"


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
    model, mesh = _definition(config), _mesh(4, 2, 1)
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
    model, mesh = _definition(config), _mesh(2, 1, 2)
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
    model, mesh = _definition(config), _mesh(2, 2, 1)
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
    model, mesh = _definition(config), _mesh(1, 1, 1, sequence=4)
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
