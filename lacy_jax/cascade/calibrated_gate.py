"""The gate "calibrated": the probability that the model is about to state a fact wrongly, from all gate scores.

Learned targets give CALL no gradient (arXiv:2602.12005 §4), so p(CALL) ranks positions but is not a probability.
Scaling it (Platt) would make it one, but would change no rank and so no text. The gate is therefore a logistic
regression on all scores of a position, fitted on validation text with factual labels to "factual, and not the
model's first choice". Its value is a probability, and it ranks positions differently from the other gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lacy_jax.cascade.gates import batch_scores
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import Transformer
from lacy_jax.objectives.gates import GATES, scored_gates

_RIDGE = 1e-3
_NEWTON_STEPS = 30


@dataclasses.dataclass(frozen=True)
class CalibratedGate:
    """logit of the chance of a wrong fact = scores . weights + bias.

    Attributes:
      weights: float64 [G], one per name of `scored_gates`; 0 for `random`.
      bias: changes the probability, not the rank.
    """

    weights: Float[np.ndarray, " G"]
    bias: float

    def probability(self, scores: Float[np.ndarray, "N G"]) -> Float[np.ndarray, " N"]:
        """Chance of a wrong fact at each position, from its gate scores."""
        return 1.0 / (1.0 + np.exp(-(np.asarray(scores, np.float64) @ self.weights + self.bias)))


def gate_weights(gate: str | CalibratedGate) -> Float[np.ndarray, " G"]:
    """float32 weights of the scores (`scored_gates`) in the sum that is the gate's score: a single 1, or fitted ones.

    The gate "oracle" has no weights, as it does not look at the model.

    Raises:
      ConfigError: "calibrated" by name; it has to be fitted.
    """
    if isinstance(gate, CalibratedGate):
        return gate.weights.astype(np.float32)
    if "fit" in GATES.named(gate).needs:
        raise ConfigError(f"the gate {gate!r} has to be fitted first: pass what fit_gate returns")
    return (np.array(scored_gates()) == gate).astype(np.float32)


def fit_gate(
    model: Transformer, batches: Iterable[Any], uses_call: bool, max_tokens: int = 20_000
) -> CalibratedGate:
    """Fit on validation batches with factual labels.

    Args:
      model: a `Transformer`. uses_call: whether it was trained to call.
      max_tokens: stop after this many positions.

    Raises:
      DataError: no valid position, or no wrong fact among them to learn from.
    """
    scores: list[np.ndarray] = []
    wrong: list[np.ndarray] = []
    total = 0
    for batch in batches:
        found, first = batch_scores(model, batch)
        valid = np.asarray(batch.weights) > 0
        scores.append(found[valid])
        wrong.append(
            (np.asarray(batch.labels["factual"]).astype(bool) & (first != np.asarray(batch.targets)))[valid]
        )
        total += int(valid.sum())
        if total >= max_tokens:
            break
    if total == 0:
        raise DataError("no validation token to fit the gate on: the validation split is empty")
    return fit(np.concatenate(scores)[:max_tokens], np.concatenate(wrong)[:max_tokens], uses_call)


def fit(scores: Float[np.ndarray, "N G"], wrong: Bool[np.ndarray, " N"], uses_call: bool) -> CalibratedGate:
    """Logistic regression with a small ridge, by Newton's method, on standardised scores.

    Raises:
      DataError: all positions are wrong facts, or none is.
    """
    y = np.asarray(wrong, np.float64)
    if not 0.0 < y.mean() < 1.0:
        raise DataError(
            f"cannot fit the gate: {int(y.sum())} of {y.size} validation tokens are wrong facts; it needs some and not all"
        )
    used = np.isin(scored_gates(), scored_gates(uses_call, noise=False))
    x = np.asarray(scores, np.float64)[:, used]
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    design = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    ridge = _RIDGE * np.eye(design.shape[1])
    w = np.zeros(design.shape[1])
    w[-1] = np.log(y.mean() / (1.0 - y.mean()))
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ w, -30.0, 30.0)))
        gradient = design.T @ (p - y) / len(y) + ridge @ w
        step = np.linalg.solve((design.T * (p * (1.0 - p))) @ design / len(y) + ridge, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = np.zeros(len(used))
    weights[used] = w[:-1] / scale
    return CalibratedGate(weights, float(w[-1] - (w[:-1] / scale) @ mean))
