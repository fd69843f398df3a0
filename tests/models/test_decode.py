"""Decoding with a cache gives what one pass over the whole text gives."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import (
    ModelConfig,
    Transformer,
    check_fits_context,
    grow,
    init_cache,
)
from lacy_jax.models.transformer import _laid_out, _lay_out_on_device

pytestmark = pytest.mark.oldest

FAMILIES = ("gpt2", "llama")
SMALL = ModelConfig("gpt2", 61, 32, 2, 4, 2, 8, 48, 40)
LENGTHS = np.array([23, 9, 1, 16])

forward = jax.jit(lambda model, *inputs: model.logits(model(*inputs)))
run_logits = jax.jit(lambda model, hidden: model.logits(hidden))
run_decode = jax.jit(lambda model, *inputs: model.decode(*inputs), static_argnums=4)


@functools.cache
def setup(family: str, **changes):
    """A model with random parameters, rows of ragged length, and the logits of one pass over them."""
    cfg = dataclasses.replace(SMALL, family=family, **changes)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: 0.2 * random.normal(size=leaf.shape).astype(np.float32), abstract)
    model = nnx.merge(graph, values)
    tokens = random.integers(0, cfg.vocab_size, (len(LENGTHS), 23)).astype(np.int32)
    positions = np.broadcast_to(np.arange(23, dtype=np.int32), tokens.shape)
    segments = (positions < LENGTHS[:, None]).astype(np.int32)
    return model, tokens, forward(model, tokens, positions, segments)


def decode(model, tokens, cache, sizes, padding=1000, pack=None):
    """Feed `tokens` in chunks that hold up to 5 tokens of each row; the rest of a chunk is padding.

    Args:
      sizes: per chunk, how many tokens each row gets (one number for all, or one per row).
    """
    hidden = np.zeros((*tokens.shape, model.cfg.d_model), np.float32)
    done = np.zeros(len(tokens), int)
    for size in sizes:
        step = np.minimum(size, LENGTHS - done)
        width = 1 if np.max(size) == 1 else 5
        fed, positions = np.full((2, len(tokens), width), padding, np.int32)
        for row, n in enumerate(step):
            fed[row, :n] = tokens[row, done[row] : done[row] + n]
            positions[row, :n] = np.arange(done[row], done[row] + n)
        out, cache = run_decode(model, fed, positions, cache, pack)
        assert np.isfinite(out).all()
        for row, n in enumerate(step):
            hidden[row, done[row] : done[row] + n] = out[row, :n]
        done += step
    assert (done == LENGTHS).all()
    return hidden, cache


def assert_equals_full_pass(model, hidden, want):
    for got, full in zip(run_logits(model, hidden), want):
        for row, length in enumerate(LENGTHS):
            np.testing.assert_allclose(got[row, :length], full[row, :length], atol=1e-4)


CHUNKS = (5, 1, 1, 5, 4, 1, 1, 5)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("llama", {"n_kv_heads": 1, "qk_norm": True, "tie_head": False}),
        ("llama", {"sliding_window": (4,)}),  # Rows and chunks are longer than the window.
        ("gpt2", {"sliding_window": (7, 0, 3), "n_layers": 4}),
    ],
)
def test_incremental_logits_equal_the_full_pass(family, options):
    model, tokens, want = setup(family, **options)
    hidden, _ = decode(model, tokens, init_cache(model.cfg, len(tokens), 32), CHUNKS)
    assert_equals_full_pass(model, hidden, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_advance_by_different_amounts(family):
    """As with a partner: one row appends several tokens while others append one or none."""
    model, tokens, want = setup(family)
    sizes = np.random.default_rng(1).integers(0, 6, (20, len(tokens)))
    hidden, _ = decode(model, tokens, init_cache(model.cfg, len(tokens), 32), sizes)
    assert_equals_full_pass(model, hidden, want)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("llama", {"qk_norm": True}),
        ("llama", {"dtype": "bfloat16"}),
        ("llama", {"sliding_window": (5, 0)}),
    ],
)
@pytest.mark.parametrize("pack", [None, 9])
def test_the_layout_for_decoding_changes_nothing(family, options, pack):
    """Layers apart, matrices in the compute dtype, only real tokens through the matrices: the same states and cache.

    `pack` just holds the chunks of these rows: at most 9 tokens at once, in 20 places.
    """
    model, tokens, _ = setup(family, **options)
    sizes = [np.eye(4, dtype=int)[i % 4] * 5 + np.eye(4, dtype=int)[(i + 1) % 4] * 4 for i in range(24)]
    want, want_cache = decode(model, tokens, init_cache(model.cfg, len(tokens), 32), sizes)
    got, cache = decode(
        model.for_decoding(), tokens, init_cache(model.cfg, len(tokens), 32), sizes, pack=pack
    )
    tolerance = 2e-2 if options.get("dtype") else 1e-5
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(want_cache), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_laid_out_by_numpy_as_by_a_program(dtype):
    model, _, _ = setup("llama", dtype=dtype)
    model = jax.tree.map(jnp.asarray, model)
    for ours, theirs in zip(
        *(jax.tree.leaves(of(model)) for of in (_laid_out, _lay_out_on_device)), strict=True
    ):
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)
        np.testing.assert_array_equal(ours, theirs)


def test_layers_are_read_where_they_lie_after_for_decoding():
    """What makes it fast: no copy of the parameters among the temporaries of a compiled step."""
    cfg = dataclasses.replace(SMALL, d_model=128, d_ff=512, n_layers=4)
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    cache = jax.eval_shape(lambda: init_cache(cfg, 1, 8))
    layer = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.blocks))) / cfg.n_layers

    def temporary(model):
        graph, state = nnx.split(model)
        step = jax.jit(lambda state, *inputs: nnx.merge(graph, state).decode(*inputs))
        return step.lower(state, one, one, cache).compile().memory_analysis().temp_size_in_bytes

    assert temporary(model.for_decoding()) < 0.1 * layer < layer <= temporary(model)


def test_a_model_is_laid_out_once_until_its_parameters_change():
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    tokens = np.zeros((1, 1), np.int32)

    def state(model):
        return run_decode(model, tokens, tokens, init_cache(SMALL, 1, 8))[0]

    first = model.for_decoding()
    assert model.for_decoding() is first
    before = state(first)
    model.final_norm.scale[...] = 2 * model.final_norm.scale[...]
    assert model.for_decoding() is not first
    np.testing.assert_allclose(state(model.for_decoding()), 2 * before, rtol=1e-6)


def test_models_of_one_shape_share_a_compiled_step_after_for_decoding():
    """They are flattened to a tuple and an object that is compared by identity: no module is walked at a call."""
    first, second, other = (
        Transformer(dataclasses.replace(SMALL, d_ff=width), rngs=nnx.Rngs(seed)).for_decoding()
        for seed, width in ((0, SMALL.d_ff), (1, SMALL.d_ff), (0, SMALL.d_ff + 8))
    )
    step = jax.jit(lambda model, hidden: model.logits(hidden))
    for model in (first, second):
        step(model, np.ones(SMALL.d_model, np.float32))
    assert step._cache_size() == 1
    leaves, structure = first.tree_flatten()
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert structure is second.tree_flatten()[1] is not other.tree_flatten()[1]


@pytest.mark.parametrize("padding", [-1, 32, 10**6])
def test_padding_leaves_the_cache_alone(padding):
    model, tokens, _ = setup("llama")
    _, cache = decode(model, tokens, init_cache(model.cfg, len(tokens), 32), CHUNKS, padding)
    for row, length in enumerate(LENGTHS):
        for (keys,) in cache.k:
            assert (np.asarray(keys[row, :, length:]) == 0).all()
            assert (np.abs(np.asarray(keys[row, :, :length])).max(-1) > 0).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"n_kv_heads": 1}, {"sliding_window": (5, 0)}, {"dtype": "bfloat16"}],
)
def test_blocks_of_a_cache_are_a_way_of_storing_it(options, monkeypatch):
    """Blocks of 4, 12 and more slots, against one."""
    monkeypatch.setattr("lacy_jax.models.cache.FIRST_BLOCK", 4)
    model, tokens, _ = setup("llama", **options)
    whole, several = (init_cache(model.cfg, len(tokens), 30, cut) for cut in (False, True))
    assert [block.shape[2] for block in several.k[0]] == [4, 12, 14]
    want, whole = decode(model, tokens, whole, CHUNKS)
    got, several = decode(model, tokens, several, CHUNKS)
    tolerance = 2e-2 if options.get("dtype") else 1e-5
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    longer = grow(several, 33)
    assert [block.shape[2] for block in longer.v[0]] == [4, 12, 17]
    for ours, theirs in zip((*longer.k, *longer.v), (*whole.k, *whole.v), strict=True):
        joined, slots = np.concatenate(ours, axis=2, dtype=np.float32), np.asarray(theirs[0], np.float32)
        np.testing.assert_allclose(joined[:, :, :30], slots, atol=tolerance * np.abs(slots).max())
        assert (joined[:, :, 30:] == 0).all()


def test_no_bit_of_a_row_depends_on_the_blocks_that_others_need(monkeypatch):
    monkeypatch.setattr("lacy_jax.models.cache.FIRST_BLOCK", 4)
    model, tokens, _ = setup("llama", sliding_window=(5, 0))
    step = jax.jit(lambda model, *inputs: model.decode(*inputs)[0])
    _, cache = decode(model, tokens, init_cache(model.cfg, len(tokens), 32, cut=True), CHUNKS)
    places = np.array([[2], [32], [32], [32]], np.int32)
    short = np.asarray(step(model, tokens[:, :1], places, cache))[0]
    for far in (6, 15, 31):
        places[1] = far
        beside = np.asarray(step(model, tokens[:, :1], places, cache))[0]
        np.testing.assert_array_equal(beside.view(np.uint32), short.view(np.uint32))


def test_a_slot_can_be_written_again():
    """Text taken back (a rejected continuation) is overwritten: later slots are invisible until then."""
    model, tokens, want = setup("llama")
    _, cache = decode(model, (tokens + 1) % 61, init_cache(model.cfg, len(tokens), 32), CHUNKS)
    hidden, _ = decode(model, tokens, cache, CHUNKS)
    assert_equals_full_pass(model, hidden, want)


def test_cache_is_updated_in_place_when_donated():
    cfg = dataclasses.replace(SMALL, n_layers=6, max_seq_len=512)
    model = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    cache = jax.eval_shape(lambda: init_cache(cfg, 4, 512))
    one = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    step = jax.jit(lambda model, *a: model.decode(*a), donate_argnums=3)
    memory = step.lower(model, one, one, cache).compile().memory_analysis()
    held = sum(x.size * 4 for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 2


def test_cache_follows_the_compute_dtype_and_the_context():
    cfg = dataclasses.replace(SMALL, dtype="bfloat16")
    cache = init_cache(cfg, 2, 40)
    assert [x.shape for x in jax.tree.leaves(cache)] == [(2, 2, 40, 8)] * 4
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    assert cache.max_len == 40
    for length in (41, 0):
        with pytest.raises(ConfigError, match=rf"a cache of {length} tokens: the model's context is 40"):
            init_cache(cfg, 2, length)


def test_prompt_longer_than_the_context_is_refused():
    check_fits_context(39, SMALL)
    with pytest.raises(DataError) as caught:
        check_fits_context(39, SMALL, 2, "prompt 'mara'")
    assert str(caught.value) == (
        "prompt 'mara' has 39 tokens, and with 2 new ones it does not fit: the model's context is 40: "
        "shorten it to 38 tokens or ask for fewer"
    )
