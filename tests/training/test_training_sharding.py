"""The mesh and the rule table; the same step on one device and on many."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
import training_small as small

from lacy_jax.config import changed, get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.state import init_state, state_shardings

pytestmark = pytest.mark.oldest


def test_mesh_fills_the_open_axis():
    assert dict(small.mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(small.mesh(-1, 1, 2, sequence=4).shape) == {"data": 1, "fsdp": 1, "sequence": 4, "tensor": 2}


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
    mesh = small.mesh(2, 2, 2)
    assert sharding.partition_spec(("embed", "heads", "head_dim"), (64, 4, 16), mesh) == jax.P(
        "fsdp", "tensor"
    )
    assert sharding.partition_spec(("layers", "feature"), (2, 64), mesh) == jax.P()
    assert sharding.partition_spec(("vocab", "embed"), (304, 64), mesh) == jax.P("tensor", "fsdp")
    assert sharding.partition_spec(("vocab", "embed"), (304, 64), small.mesh(8, 1, 1)) == jax.P()


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(
        ConfigError, match=r"blocks/x: two dimensions of \('heads', 'mlp'\) would lie on mesh axis 'tensor'"
    ):
        sharding.partition_spec(("heads", "mlp"), (4, 8), small.mesh(2, 2, 2), "blocks/x")


def test_indivisible_dimension_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"config.mesh.tensor = 2 does not divide vocab = 303 of embedding"):
        sharding.partition_spec(("vocab", "embed"), (303, 64), small.mesh(2, 2, 2), "embedding")


def test_too_few_kv_heads_are_replicated():
    assert sharding.partition_spec(
        ("embed", "kv_heads", "head_dim"), (64, 1, 16), small.mesh(2, 2, 2)
    ) == jax.P("fsdp")


def test_unknown_logical_axis_is_refused():
    with pytest.raises(ConfigError, match="logical axis 'colour' has no rule"):
        sharding.partition_spec(("colour",), (4,), small.mesh(2, 2, 2))


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
    model = small.definition(config)
    for mesh in (small.mesh(2, 2, 2), small.mesh(1, 2, 2, sequence=2)):
        found = sharding.parameter_shardings(model.abstract_params, model.axes, mesh)
        specs = {
            jax.tree_util.keystr(path, simple=True, separator="/"): place.spec
            for path, place in jax.tree.flatten_with_path(found)[0]
        }
        assert specs == golden


def test_optimiser_moments_lie_with_their_parameters_and_nothing_is_whole():
    config = small.make_config("")
    model, mesh = small.definition(config), small.mesh(2, 2, 2)
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
    model = small.definition(config)
    tx = make_optimizer(config, model.axes)
    one = init_state(model, tx, small.mesh(1, 1, 1), seed=3).params
    eight = init_state(model, tx, small.mesh(2, 2, 2), seed=3).params
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)


def test_batch_must_divide_over_devices():
    config = small.make_config("", input__batch_size=8, train__accumulation=2)
    with pytest.raises(
        ConfigError, match=r"a micro-batch has 4 sequences .* data x fsdp = 8 devices cannot share evenly"
    ):
        sharding.check_batch_shape(config, small.mesh(4, 2, 1))


def test_rows_must_divide_over_the_devices_that_share_them():
    config = small.make_config("", input__seq_len=36)
    sharding.check_batch_shape(config, small.mesh(2, 1, 2, sequence=2))
    with pytest.raises(
        ConfigError, match=r"config.input.seq_len = 36: config.mesh.sequence = 4 splits rows into 8"
    ):
        sharding.check_batch_shape(config, small.mesh(2, 1, 1, sequence=4))


def test_put_batch_splits_rows_over_data_and_fsdp_and_each_over_sequence():
    batch = small.random_batch(rows=8)
    length = batch.tokens.shape[1]
    for mesh, shape in (
        (small.mesh(2, 2, 2), (2, length)),
        (small.mesh(2, 1, 2, sequence=2), (4, length // 2)),
    ):
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
        small.run_step(config, small.mesh(*s), batch, steps=2) for s in ((1, 1, 1), sizes)
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
    mesh = small.mesh(*sizes)
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
    found = sharding.parameter_shardings({"w": whole}, {"w": axes}, small.mesh(*sizes), over_data=True)
    assert found["w"].spec == expected
