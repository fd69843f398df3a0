"""The decoding loop taken apart: decisions on chosen logits (where a call may be made), and how prompts are read."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import Scripted

from lacy_jax.cascade import engine, sampling
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import make_controller
from lacy_jax.cascade.calibrated_gate import gate_weights
from lacy_jax.cascade.partners.base import calls_anywhere
from lacy_jax.models import init_cache

CAPACITY = 64


@pytest.mark.parametrize("reach", ["token", "word", "span"])
def test_calls_of_words_are_made_where_a_word_begins(tokenizer, reach):
    """One decision each with the same high score: what counts is the last piece and the model's own next one."""
    partner = Scripted(" x")
    partner.reach = reach
    text = "Ada was born in Copperfield, on 7 May 1956."
    ids = tokenizer.encode(text)
    last, own = ids[:-1], ids[1:]
    size, vocab = len(own), tokenizer.vocab_size
    z = np.zeros((size, vocab), np.float32)
    z[np.arange(size), own] = 5.0
    controller = make_controller(0.5, 1.0, np.linspace(-1.0, 0.0, 100))  # Any call logit of 9 is a call.
    options = engine.RowOptions(
        prompt_length=np.ones(size, np.int32),
        limit=np.full(size, CAPACITY, np.int32),
        keys=jax.random.key_data(jax.random.split(jax.random.key(0), size)),
        gate=np.tile(gate_weights("call_logit"), (size, 1)),
        oracle=np.zeros(size, bool),
        temperature=np.zeros(size, np.float32),
        top_k=np.zeros(size, np.int32),
        top_p=np.ones(size, np.float32),
        anywhere=np.full(size, calls_anywhere(partner)),
        endless=np.zeros(size, bool),
    )
    pieces = engine.pieces_of(Boundary(tokenizer))
    zero = np.zeros(size, np.int32)
    tokens = np.zeros((size, CAPACITY), np.int32)
    tokens[:, 0] = last
    rows = engine.Rows(
        tokens=tokens,
        known=zero + 1,
        fed=zero + 1,
        status=zero + engine.RUNNING,
        candidate=zero,
        need=zero,
        scores=np.full((size, CAPACITY), np.nan, np.float32),
        budget=controller.init(size, CAPACITY),
    )
    rows, options = jax.tree.map(jnp.asarray, (rows, options))
    after = engine._decide(rows, np.ones(size, bool), z, jnp.full(size, 9.0), options, pieces, controller)
    called = np.asarray(after.status) == engine.WAITING
    names = [tokenizer.piece(int(i)) for i in ids]
    begins = [b[0] == "\u2581" or a[-1] == "\u2581" for a, b in itertools.pairwise(names)]
    assert called.tolist() == ([True] * size if reach == "token" else begins)
    assert 0 < sum(begins) < size
    # Who may not call writes its own token.
    np.testing.assert_array_equal(np.asarray(after.tokens)[~called, 1], own[~called])


def test_prompts_of_any_lengths_are_read_in_few_shapes():
    """Chunks of three sizes, each packed to a part where its tokens fit: what may ever be compiled."""
    random, shapes = np.random.default_rng(0), set()
    for _ in range(300):
        start = np.zeros(16, int)
        stop = random.integers(0, random.integers(1, 300), 16)
        while (left := int((stop - start).max())) > 0:
            size = next((size for size in engine.CHUNKS if left <= size), engine.CHUNKS[-1])
            _, positions = engine.cut_chunk(np.zeros((16, 300), np.int32), start, stop, size, 300)
            pack = engine.packing(positions, 300)
            assert pack is None or np.sum(positions < 300) <= pack
            shapes.add((size, pack))
            start = np.minimum(start + size, np.maximum(start, stop))
    assert shapes == {(size, pack) for size in engine.CHUNKS for pack in (size * 4, size * 6, size * 8, None)}


@pytest.mark.parametrize(
    ("lengths", "rows", "apart"),
    [
        ([12], 16, True),  # 32 positions against a quarter of 16 x 32.
        ([12] * 4, 16, False),
        ([5] * 16, 16, False),
        ([200, 5, 5], 16, True),  # Beside the long one, the short ones would be as long.
        ([12], 1, False),
        ([0], 16, False),  # Nothing to read.
        ([600, 600], 4, False),  # 2 x 768 positions, and as many in half of 4 x 768.
        ([600, 600], 8, False),
        ([600, 30], 8, True),
    ],
)
def test_prompts_are_read_side_by_side_where_that_computes_less(lengths, rows, apart):
    assert engine.read_apart(np.array(lengths), rows) == apart


def test_a_prompt_is_read_alone_as_beside_others(model, tokenizer, world):
    laid_out = model.for_decoding()
    prompts = [tokenizer.encode(world.text(at).text)[:length] for at, length in enumerate((9, 30, 3))]
    tokens = np.zeros((3, 64), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = ids
    lengths = np.array([len(ids) for ids in prompts])
    beside = engine.prefill(laid_out, init_cache(model.cfg, 3, 64), tokens, np.zeros(3, int), lengths)
    alone = init_cache(model.cfg, 3, 64)
    for row, ids in enumerate(prompts):
        alone = engine.prefill_row(laid_out, alone, row, ids)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(beside), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_top_k_and_top_p_leave_in_what_a_plain_reference_does():
    """Each row by its own options: first the k likeliest, then of those the fewest that hold p of their probability."""
    random, rows, vocab = np.random.default_rng(0), 12, 40
    z = random.normal(size=(rows, vocab)).astype(np.float32) * 3
    z[:, 7] = -np.inf  # A piece that is never written.
    temperature = random.uniform(0.3, 2.0, rows).astype(np.float32)
    top_k = np.array([0, 1, 5, 0, 40, 99] * 2, np.int32)
    top_p = np.array([1.0, 1.0, 1.0, 0.5, 0.9, 1e-9] * 2, np.float32)
    scaled = z / temperature[:, None]
    found = np.asarray(sampling._likeliest(*map(jnp.asarray, (z, scaled, temperature, top_k, top_p))))
    for row in range(rows):
        order = np.argsort(-z[row], kind="stable")[: top_k[row] or vocab]
        p = np.exp((z[row, order] - z[row].max()) / temperature[row])
        p /= p.sum()
        kept = [token for i, token in enumerate(order) if i == 0 or p[:i].sum() < top_p[row]]
        inside = np.isin(np.arange(vocab), kept) & np.isfinite(z[row])
        np.testing.assert_allclose(found[row][inside], (z[row] / temperature[row])[inside], rtol=1e-6)
        assert (found[row][~inside] == -np.inf).all()
