"""Scores of all gates (`objectives.gates`): where a text is decoded, and on held-out text, where decoding starts from."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.objectives.gates import GATES, scored_gates


def gate_scores(
    z: Float[Array, "*B V"], c: Float[Array, "*B"], noise: Float[Array, "*B"]
) -> Float[Array, "*B G"]:
    """Scores of all gates, in the order of `scored_gates`; higher = more in need of help.

    Args:
      z: base logits, float32. c: CALL logits, float32. noise: uniform [0, 1) numbers, the `random` gate.
    """
    best = jnp.argmax(z, axis=-1)[..., None]
    first = jnp.max(z, axis=-1)
    # Not lax.top_k: XLA's CPU backend sorts all of V for it, which costs as much as the model itself.
    second = jnp.max(jnp.where(jnp.arange(z.shape[-1]) == best, -jnp.inf, z), axis=-1)
    lse = jax.nn.logsumexp(z, axis=-1)
    entropy = lse - jnp.sum(jnp.exp(z - lse[..., None]) * z, axis=-1)
    head = types.SimpleNamespace(lse=lse, call_logit=c, max_z=first, second_z=second, entropy=entropy)
    return stack_scores(head, noise)


def stack_scores(head: Any, noise: Float[Array, "*B"]) -> Float[Array, "*B G"]:
    """float32 scores of all gates from the statistics of the heads."""
    found = [GATES[name].score(head, noise) for name in scored_gates()]
    return jnp.stack([score.astype(jnp.float32) for score in found], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _batch_scores(
    graphdef: Any, state: Any, tokens: Array, positions: Array, segments: Array
) -> tuple[Array, Array]:
    """Scores [B, T, G] and first choices [B, T] of a teacher-forced batch; one row of logits [T, V] exists at a time."""
    model = nnx.merge(graphdef, state)
    hidden = model(tokens, positions, segments)
    # The head is read outside the loop: a module must not be captured by a traced function of another level.
    kernel, call = model.head_kernel(), model.call_vector()

    def row(h: Array) -> tuple[Array, Array]:
        h = h.astype(jnp.float32)
        z = h @ kernel.T
        return gate_scores(z, h @ call, jnp.zeros(h.shape[0])), jnp.argmax(z, axis=-1)

    return jax.lax.map(row, hidden)


def batch_scores(model: nnx.Module, batch: Any) -> tuple[Float[np.ndarray, "B T G"], Int[np.ndarray, "B T"]]:
    """Scores of all gates (0 for `random`), and the model's first choice, at each position of a `Batch`."""
    graphdef, state = nnx.split(model)
    scores, first = _batch_scores(graphdef, state, batch.tokens, batch.positions, batch.segment_ids)
    return np.asarray(scores), np.asarray(first)


def calibration_scores(
    model: nnx.Module,
    batches: Iterable[Any],
    gate: str | Float[np.ndarray, " G"],
    max_tokens: int = 20_000,
    boundary: Boundary | None = None,
) -> np.ndarray:
    """Gate scores on held-out text, in reading order: where the running quantile of generation starts.

    Args:
      model: a `Transformer`.
      batches: `Batch`es of validation text; only positions with weight > 0 are scored.
      gate: a name of `scored_gates`, or weights of their scores (`calibrated_gate.gate_weights`).
      max_tokens: stop after this many scores.
      boundary: `Boundary(tokenizer)` if calls will be made only where a word begins (a partner that returns
        words or spans, `partner.calls_anywhere`): elsewhere the score is then -inf, as it is in generation.

    Returns:
      float32 [N], row by row and in text order (`budget.make_controller` walks through it as a text).

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
    for batch in batches:
        scores = batch_scores(model, batch)[0] @ weights
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
