"""Dimensions, their checks, and what they cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lacy_jax.config import get_default_config
from lacy_jax.default_config import FAMILIES
from lacy_jax.errors import ConfigError
from lacy_jax.models import (
    PRESETS,
    Mask,
    ModelConfig,
    Transformer,
    attention,
    check_model_config,
    count_params,
    flops_per_token,
    parameter_counts,
    resolve_model_config,
)
from lacy_jax.models.config import DIMENSIONS, RUN_FIELDS


def resolve(
    family: str = "gpt2", preset: str = "tiny", vocab_size: int = 32_000, seq_len: int = 0, **overrides
):
    model = get_default_config().model
    with model.unlocked():
        model.update(family=family, preset=preset, **overrides)
    return resolve_model_config(model, vocab_size, seq_len)


# All parameters with V = 32,000, tied head. Update only with a deliberate change of a preset, and say so in the
# README: runs are compared by these names.
GOLDEN = {
    ("gpt2", "tiny"): 4_922_240,
    ("gpt2", "10m"): 9_801_792,
    ("gpt2", "30m"): 30_230_400,
    ("gpt2", "124m"): 110_419_200,
    ("gpt2", "334m"): 336_129_024,
    ("gpt2", "1b3"): 1_276_237_824,
    ("llama", "tiny"): 4_949_248,
    ("llama", "10m"): 9_686_400,
    ("llama", "30m"): 29_991_168,
    ("llama", "124m"): 109_530_624,
    ("llama", "334m"): 331_663_360,
    ("llama", "1b3"): 1_298_763_776,
}


@pytest.mark.parametrize(("family", "preset"), GOLDEN)
def test_preset_has_exactly_the_parameters_it_is_named_for(family, preset):
    cfg = resolve(family, preset)
    abstract = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    held = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    assert held == count_params(cfg) == GOLDEN[family, preset]


def test_golden_covers_every_preset():
    assert set(GOLDEN) == {(family, name) for name, preset in PRESETS.items() for family in preset.families}


def test_gpt2_small_has_its_published_size_with_its_own_vocabulary():
    # 124,439,808 is the published GPT-2 small: our CALL vector (768) comes on top.
    assert count_params(resolve("gpt2", "124m", vocab_size=50_257)) == 124_439_808 + 768


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_follow_options(family):
    cfg = resolve(family, vocab_size=100, tie_head=False, qk_norm=True, n_kv_heads=2, query_dim=24)
    state = nnx.state(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == count_params(cfg)
    counts = parameter_counts(cfg)
    assert (counts.embedding, counts.head, counts.call) == (100 * 128, 100 * 128, 128)


def _matmul_flops(jaxpr) -> int:
    """2 x multiply-adds of every dot_general, loops not expected."""
    total = 0
    for eqn in jaxpr.eqns:
        assert eqn.primitive.name not in ("scan", "while"), "count an unrolled model"
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                total += _matmul_flops(value.jaxpr)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = 1
            for axis in contracted:
                depth *= eqn.invars[0].aval.shape[axis]
            total += 2 * eqn.outvars[0].aval.size * depth
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_the_traced_model(family):
    # One layer, because an unrolled scan is still a scan in the jaxpr; layers enter the formula linearly.
    cfg = resolve(family, vocab_size=96, n_kv_heads=2, n_layers=1, attention="reference")
    model = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    tokens = np.zeros((1, 32), np.int32)

    def layer_and_heads(model, x):
        graph, parameters = nnx.split(model.blocks)
        block = nnx.merge(graph, jax.tree.map(lambda p: p[0], parameters))
        q, k, v = block.project(x, tokens)
        return model.logits(block.finish(x, attention(q, k, v, Mask(tokens), "reference")))

    forward = _matmul_flops(jax.make_jaxpr(layer_and_heads)(model, jnp.zeros((1, 32, cfg.d_model))).jaxpr)
    assert flops_per_token(cfg, 32) * 32 == 3 * forward
    two = dataclasses.replace(cfg, n_layers=2)
    none = dataclasses.replace(cfg, n_layers=0)
    assert flops_per_token(two, 32) + flops_per_token(none, 32) == 2 * flops_per_token(cfg, 32)
    # A window counts as a row of its length, in the layers that have it.
    assert flops_per_token(dataclasses.replace(cfg, sliding_window=(8,)), 32) == flops_per_token(cfg, 8)
    assert flops_per_token(dataclasses.replace(cfg, sliding_window=(99,)), 32) == flops_per_token(cfg, 32)
    mixed = flops_per_token(dataclasses.replace(two, sliding_window=(8, 0)), 32)
    assert mixed + flops_per_token(none, 32) == flops_per_token(cfg, 8) + flops_per_token(cfg, 32)


def test_overrides():
    assert resolve(d_model=256).n_heads == 8  # heads keep their width of 32
    assert resolve(d_model=256).d_ff == 1024
    assert resolve("llama", "1b3", n_heads=8).n_kv_heads == 2  # the preset's 4 queries per key head
    assert resolve("llama", "1b3", n_heads=2, d_model=128).n_kv_heads == 2
    assert resolve(seq_len=1000).max_seq_len == 1000
    assert resolve(seq_len=100).max_seq_len == 256
    assert resolve(max_seq_len=2048, seq_len=100).max_seq_len == 2048
    assert resolve(qk_norm=True, rope_theta=5e5, dtype="bfloat16").rope_theta == 5e5


def test_the_run_config_has_every_field_of_the_model_and_a_preset():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(get_default_config().model) == fields - {"vocab_size"} | {"preset"}


def test_windows_are_repeated_over_the_layers():
    assert resolve(n_layers=5).windows == (0,) * 5
    assert resolve(n_layers=5, sliding_window=(64,)).windows == (64,) * 5
    assert resolve(n_layers=5, sliding_window=(64, 64, 0)).windows == (64, 64, 0, 64, 64)


def test_config_is_hashable_and_frozen():
    assert hash(resolve()) == hash(resolve())
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve().d_model = 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"preset": "125m"}, "config.model.preset = '125m': expected one of tiny, 10m"),
        ({"family": "bert"}, "config.model.family"),
        ({"n_heads": 3}, "n_heads = 3: must divide d_model = 128"),
        ({"n_kv_heads": 3}, "config.model.n_kv_heads = 3: must divide config.model.n_heads = 4"),
        ({"n_kv_heads": 0}, "config.model.n_kv_heads = 0: must be at least 1"),
        ({"n_layers": 0}, "config.model.n_layers = 0: must be at least 1"),
        ({"family": "llama", "d_model": 132, "n_heads": 4}, "rotary positions need an even width"),
        ({"dropout": 1.0}, "config.model.dropout = 1.0"),
        ({"rope_theta": 0.0}, "config.model.rope_theta"),
        ({"norm_eps": 0.0}, "config.model.norm_eps = 0.0: must be positive"),
        (
            {"family": "llama", "rope_scaling": ("yarn", 2.0)},
            "config.model.rope_scaling = ('yarn', 2.0): expected ()",
        ),
        ({"family": "llama", "rope_scaling": ("llama3", 8.0, 4.0, 1.0, 512)}, "with low < high"),
        ({"family": "gpt2", "rope_scaling": ("linear", 2.0)}, "config.model.rope_scaling"),
        ({"family": "gpt2", "mlp_bias": True}, "config.model.mlp_bias = True: only for family 'llama'"),
        (
            {"family": "gpt2", "attention_out_bias": False},
            "config.model.attention_out_bias = False: only for family 'llama'",
        ),
        (
            {"sliding_window": (-1,)},
            "config.model.sliding_window = (-1,): expected at most n_layers = 4 numbers",
        ),
        ({"sliding_window": (8, 8, 8, 8, 0)}, "at most n_layers = 4 numbers of keys, such as (1024,)"),
        ({"attention": "flash"}, "config.model.attention = 'flash': expected one of auto, reference"),
        ({"dtype": "float16"}, "config.model.dtype"),
        ({"remat": "some"}, "config.model.remat"),
        (
            {"max_seq_len": 64, "seq_len": 128},
            "config.model.max_seq_len = 64: shorter than config.input.seq_len",
        ),
    ],
)
def test_bad_dimensions_are_refused_in_one_line(overrides, says):
    with pytest.raises(ConfigError) as caught:
        resolve(**overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transformer_checks_a_hand_made_config():
    bad = ModelConfig("gpt2", 10, 8, 1, 2, 3, 4, 16, 8)
    with pytest.raises(ConfigError, match="n_kv_heads"):
        Transformer(bad, rngs=nnx.Rngs(0))
    check_model_config(dataclasses.replace(bad, n_kv_heads=1))


def test_the_config_has_each_field_of_a_model_once():
    """But for the vocabulary, which the tokenizer says; a field that one of them forgets would never be read."""
    assert set(get_default_config().model) == {"preset", "family", *DIMENSIONS, *RUN_FIELDS}
