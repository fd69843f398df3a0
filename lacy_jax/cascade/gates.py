"""Scores of all gates (`objectives.gates`): during decoding, and on held-out text to calibrate decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import Transformer
from lacy_jax.objectives import GATES, HeadStatistics, scored_gates
from lacy_jax.objectives.scoring import scorer


def gate_scores(head: HeadStatistics, noise: Float[Array, "*B"]) -> Float[Array, "*B G"]:
    """Scores of all gates, in the order of `scored_gates`; higher = needs help more.

    Args:
      head: float32 [*B] statistics of the heads. noise: uniform [0, 1) numbers, the `random` gate.
    """
    found = [GATES[name].score(head, noise) for name in scored_gates()]
    return jnp.stack([jnp.asarray(score, jnp.float32) for score in found], axis=-1)


def batch_scores(model: Transformer, batch: Any) -> tuple[Float[np.ndarray, "B T G"], Int[np.ndarray, "B T"]]:
    """Scores of all gates (0 for `random`), and the model's first choice, at each position of a `Batch`.

    Decoding computes the same for the same text: the same statistics of the same logits.
    """
    found = scorer(model)(batch.tokens, batch.targets, batch.positions, batch.segment_ids)
    return np.asarray(gate_scores(found, jnp.zeros_like(found.lse))), np.asarray(found.top1)


def calibration_scores(
    model: Transformer,
    batches: Iterable[Any],
    gate: str | Float[np.ndarray, " G"],
    max_tokens: int = 20_000,
    boundary: Boundary | None = None,
    known: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Gate scores on held-out text, in reading order: the start of generation's running distribution.

    Args:
      model: a `Transformer`.
      batches: `Batch`es of validation text; only positions with weight > 0 are scored.
      gate: a name in `scored_gates`, or weights of their scores (`calibrated_gate.gate_weights`).
      max_tokens: stop after this many scores.
      boundary: `Boundary.of(tokenizer)` if calls will be made only where a word begins (a partner that returns
        words or spans, `partner.calls_anywhere`): elsewhere the score is then -inf, as it is in generation.
      known: the `batch_scores` of each batch, float32 [B, T, G], if they have been computed before.

    Returns:
      float32 [N], row by row and in text order (`budget.make_controller` reads it like a text).

    Raises:
      ConfigError: an unknown gate. DataError: no batch, or no valid position.
    """
    if isinstance(gate, str):
        if gate not in scored_gates():
            raise ConfigError(f"gate {gate!r}: scores are there for {', '.join(scored_gates())}")
        if "noise" in GATES[gate].needs:  # Its distribution is known.
            return np.random.default_rng(0).random(max_tokens, dtype=np.float32)
        weights = (np.array(scored_gates()) == gate).astype(np.float32)
    else:
        weights = np.asarray(gate, np.float32)
    found: list[np.ndarray] = []
    total = 0
    for number, batch in enumerate(batches):
        scores = (batch_scores(model, batch)[0] if known is None else known[number]) @ weights
        if boundary is not None:
            at_word = boundary.begins[np.asarray(batch.targets)] | boundary.opens[np.asarray(batch.tokens)]
            scores = np.where(at_word, scores, -np.inf)
        kept = scores[np.asarray(batch.weights) > 0]
        found.append(kept)
        total += kept.size
        if total >= max_tokens:
            break
    if total == 0:
        raise DataError("no validation token to calibrate the gate on: the validation split is empty")
    return np.concatenate(found)[:max_tokens].astype(np.float32)
