"""The calibrated gate: its fit, its calibration, its use in generation; the oracle gate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cascade_fakes import Scripted, make_batch

from lacy_jax.cascade import (
    CalibratedGate,
    FactTablePartner,
    calibration_scores,
    fit_gate,
    gate_weights,
    generate,
)
from lacy_jax.cascade.calibrated_gate import fit
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.objectives import scored_gates


def _positions(seed, n=20_000):
    """Scores of which the CALL logit and the margin tell about wrong facts, and the truth."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, len(scored_gates()))) * [3.0, 2.0, 1.0, 0.5, 4.0, 1.0] + [5, -3, 0, 1, -2, 0]
    logit = 0.8 * (scores[:, 0] - 5) + 0.3 * (scores[:, 4] + 2) - 2.0
    return scores, rng.random(n) < 1 / (1 + np.exp(-logit))


def test_the_fit_finds_the_weights_and_is_calibrated_on_new_text():
    gate = fit(*_positions(0), uses_call=True)
    np.testing.assert_allclose(gate.weights, [0.8, 0, 0, 0, 0.3, 0], atol=0.08)
    assert gate.weights[scored_gates().index("random")] == 0.0
    scores, wrong = _positions(1)
    p = gate.probability(scores)
    for low in np.arange(0.0, 0.9, 0.1):
        inside = (p >= low) & (p < low + 0.1)
        assert abs(p[inside].mean() - wrong[inside].mean()) < 0.05


def test_a_plain_model_uses_no_call_score():
    gate = fit(*_positions(0), uses_call=False)
    assert (gate.weights[:3] == 0).all()
    assert gate.weights[4] > 0.1


def test_nothing_to_learn_from_is_an_error(model):
    scores, wrong = _positions(0, 100)
    with pytest.raises(DataError, match="0 of 100 validation tokens are wrong facts"):
        fit(scores, wrong & False, uses_call=True)
    with pytest.raises(DataError, match="validation split is empty"):
        fit_gate(model, [], uses_call=True)


def test_fit_on_batches_takes_factual_targets_the_model_gets_wrong(model):
    tokens = np.random.default_rng(0).integers(3, 400, size=(4, 32))
    batch = make_batch(tokens, np.ones((4, 32)))
    factual = np.random.default_rng(1).random((4, 32)) < 0.5
    batch = dataclasses.replace(batch, targets=np.roll(tokens, -1, 1), labels={"factual": factual})
    gate = fit_gate(model, [batch], uses_call=True)
    # Targets at random: nearly all are wrong, so the mean probability is the share of factual ones.
    from lacy_jax.cascade.gates import batch_scores

    assert gate.probability(batch_scores(model, batch)[0]).mean() == pytest.approx(factual.mean(), abs=0.02)


def test_weights_of_named_gates_and_calibration_by_weights(model):
    assert gate_weights("entropy").tolist() == [0, 0, 0, 1, 0, 0]
    assert gate_weights("oracle").sum() == 0
    with pytest.raises(ConfigError, match="has to be fitted first"):
        gate_weights("calibrated")
    batch = make_batch(np.full((1, 16), 9), np.ones((1, 16)))
    mixed = calibration_scores(model, [batch], np.array([0, 2.0, 0, 1.0, 0, 0]))
    parts = [calibration_scores(model, [batch], name) for name in ("call_prob", "entropy")]
    np.testing.assert_allclose(mixed, 2 * parts[0] + parts[1], rtol=1e-5)
    with pytest.raises(ConfigError, match="scores are there for"):
        calibration_scores(model, [batch], "oracle")


def test_generation_with_a_fitted_gate_and_with_the_oracle(model, tokenizer, world):
    prompts = [world.prompt(i) for i in range(2)]
    options = {"budget": 0.25, "max_new_tokens": 24, "progress": False}
    partner = FactTablePartner(world)
    doubled = CalibratedGate(2.0 * gate_weights("entropy").astype(np.float64), -1.0)
    texts = generate(model, tokenizer, prompts, partner, gate=doubled, **options)
    named = generate(model, tokenizer, prompts, partner, gate="entropy", **options)
    assert [t.text for t in texts] == [t.text for t in named]  # Twice the score ranks alike.
    assert texts[0].gate == "calibrated"
    scores = [s for s in texts[0].gate_scores if s is not None]
    np.testing.assert_allclose(scores, [2 * s for s in named[0].gate_scores if s is not None], rtol=1e-4)

    known = generate(model, tokenizer, prompts, partner, gate="oracle", **options)
    for text in known:
        values = {value for _, _, value in world.table()}
        lent = [text.text[a:b].strip() for a, b, who in text.spans if who == "partner"]
        assert all(any(piece in value for value in values) for piece in lent)  # Facts, never ordinary words.
        assert text.call_share <= 0.25 + 1.5 / 24
    with pytest.raises(ConfigError, match="does not know where facts begin"):
        generate(model, tokenizer, prompts, Scripted(" x"), gate="oracle", **options)


def test_the_oracle_lends_the_fact_that_is_asked_for(model, tokenizer, world):
    """Prompts that end right before a fact: with the oracle each begins with it."""
    cases = []
    for index in range(2):
        document = world.text(index)
        fact = document.facts[0]
        cases.append((document.text[: fact.start].rstrip(), fact.value))
    texts = generate(
        model, tokenizer, [prompt for prompt, _ in cases], FactTablePartner(world), gate="oracle", budget=1.0,
        max_new_tokens=24, progress=False,
    )  # fmt: skip
    for text, (_, value) in zip(texts, cases, strict=True):
        assert text.origins[0] == "model" or text.text.startswith(f" {value}")
    assert any(text.text.startswith(f" {value}") for text, (_, value) in zip(texts, cases, strict=True))
