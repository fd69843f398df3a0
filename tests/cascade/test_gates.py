"""Gate scores against numpy; calibration scores against the full forward pass."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from cascade_fakes import make_batch

from lacy_jax.cascade import Boundary, calibration_scores, gate_scores
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.objectives import head_statistics, resolve_gate, scored_gates


def _by_numpy(z, c):
    """All gates but random, from probabilities."""
    p = scipy.special.softmax(z.astype(np.float64), axis=-1)
    ordered = np.sort(z, axis=-1)
    entropy = -np.sum(p * np.log(p), axis=-1)
    lse = np.log(np.exp(z.astype(np.float64)).sum(-1))
    return np.stack(
        [c, c - lse, c - ordered[..., -1], entropy, -(ordered[..., -1] - ordered[..., -2])], axis=-1
    )


def test_scores_match_numpy():
    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(7, 50)).astype(np.float32) * 3, rng.normal(size=7).astype(np.float32)
    scores = np.asarray(gate_scores(head_statistics(jnp.asarray(z), jnp.asarray(c)), jnp.full(7, 0.25)))
    np.testing.assert_allclose(scores[:, :5], _by_numpy(z, c), rtol=1e-5, atol=1e-5)
    assert scored_gates()[5] == "random"
    assert (scores[:, 5] == 0.25).all()


def test_tied_largest_logits_have_margin_zero():
    z = jnp.array([[1.0, 4.0, 4.0, 0.0]])
    scores = gate_scores(head_statistics(z, jnp.zeros(1)), jnp.zeros(1))
    assert scores[0, scored_gates().index("margin")] == 0.0


def test_auto_gate_depends_on_whether_the_model_calls():
    assert resolve_gate("auto", uses_call=True) == "call_margin"
    assert resolve_gate("auto", uses_call=False) == "margin"
    with pytest.raises(ConfigError, match=r"'calls'.*call_logit"):
        resolve_gate("calls", uses_call=True)


@pytest.mark.parametrize("gate", ["call_prob", "entropy"])
def test_calibration_scores_are_those_of_valid_positions_in_reading_order(model, full_forward, gate):
    tokens = np.random.default_rng(0).integers(3, 400, size=(2, 16))
    weights = np.ones((2, 16))
    weights[0, 5:] = 0
    scores = calibration_scores(model, [make_batch(tokens, weights)], gate)
    expected = [_by_numpy(*full_forward(model, row))[:, scored_gates().index(gate)] for row in tokens]
    np.testing.assert_allclose(scores, np.concatenate([expected[0][:5], expected[1]]), rtol=1e-4, atol=1e-4)


def test_calibration_knows_where_calls_may_be_made(model, tokenizer):
    """Where the target goes on with the word, the score is -inf, as in generation."""
    text = "He was born in Copperfield on 7 May 1956, Hartski."
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)])
    batch = make_batch(ids[None, :-1], np.ones((1, len(ids) - 1)))
    batch = dataclasses.replace(batch, targets=ids[None, 1:])
    everywhere = calibration_scores(model, [batch], "margin")
    at_words = calibration_scores(model, [batch], "margin", boundary=Boundary(tokenizer))
    open_ = np.isfinite(at_words)
    np.testing.assert_array_equal(at_words[open_], everywhere[open_])
    previous = " "
    for token, may in zip(ids[1:], open_):
        piece = tokenizer.piece(int(token))
        assert may == (piece[0] == "\u2581" or previous[-1] == "\u2581" or previous == " "), piece
        previous = piece


def test_calibration_stops_at_the_limit_and_needs_text(model):
    batch = make_batch(np.full((2, 16), 9), np.ones((2, 16)))
    assert calibration_scores(model, [batch] * 3, "margin", max_tokens=20).shape == (20,)
    assert calibration_scores(model, [], "random", max_tokens=20).shape == (20,)
    with pytest.raises(DataError, match="validation split is empty"):
        calibration_scores(model, [], "margin")
