"""Gates: one score per position that says how much the model would like help there.

Every gate is computed from the head statistics of one position: lse_V, the CALL logit c, the two largest base
logits and the entropy of p_\\CALL (arXiv:2602.12005 §5.1 thresholds c by rank; entropy and margin are the
after-the-fact gates a plain model can offer). Only the rank of a score matters, so no gate needs calibration.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lacy_jax.errors import ConfigError, DataError

GATES = ("call_logit", "call_prob", "call_margin", "entropy", "margin", "random")


def resolve_gate(gate: str, uses_call: bool) -> str:
    """The gate meant by "auto": `call_margin` for a model trained to call, `margin` for a plain one.

    c - max z is the gate that ranks well for every calling policy (loss-based calls are useless by c alone),
    and the margin is the better after-the-fact gate on a plain model (the prototype of method.md).

    Raises:
      ConfigError: an unknown gate.
    """
    if gate == "auto":
        return "call_margin" if uses_call else "margin"
    if gate not in GATES:
        raise ConfigError(f"gate {gate!r}: expected auto or one of {', '.join(GATES)}")
    return gate


def gate_scores(
    z: Float[Array, "*B V"], c: Float[Array, "*B"], noise: Float[Array, "*B"]
) -> Float[Array, "*B 6"]:
    """Scores of all gates, in the order of `GATES`; higher = more in need of help.

    Args:
      z: base logits, float32. c: CALL logits, float32. noise: uniform [0, 1) numbers, the `random` gate.
    """
    best = jnp.argmax(z, axis=-1)[..., None]
    first = jnp.max(z, axis=-1)
    # Not lax.top_k: XLA's CPU backend sorts all of V for it, which costs as much as the model itself.
    second = jnp.max(jnp.where(jnp.arange(z.shape[-1]) == best, -jnp.inf, z), axis=-1)
    lse = jax.nn.logsumexp(z, axis=-1)
    entropy = lse - jnp.sum(jnp.exp(z - lse[..., None]) * z, axis=-1)
    scores = (c, c - lse, c - first, entropy, second - first, noise)
    return jnp.stack([score.astype(jnp.float32) for score in scores], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _batch_scores(graphdef: Any, state: Any, tokens: Array, positions: Array, segments: Array) -> Array:
    """[B, T, 6] scores of a teacher-forced batch; one row of logits [T, V] exists at a time."""
    model = nnx.merge(graphdef, state)
    hidden = model(tokens, positions, segments)
    # The head is read outside the loop: a module must not be captured by a traced function of another level.
    kernel, call = model.head_kernel(), model.call_vector()

    def row(h: Array) -> Array:
        h = h.astype(jnp.float32)
        return gate_scores(h @ kernel.T, h @ call, jnp.zeros(h.shape[0]))

    return jax.lax.map(row, hidden)


def calibration_scores(
    model: nnx.Module,
    batches: Iterable[Any],
    gate: str,
    max_tokens: int = 20_000,
) -> np.ndarray:
    """Gate scores on held-out text, in reading order: where the running quantile of generation starts.

    Args:
      model: a `Transformer`.
      batches: `Batch`es of validation text; only positions with weight > 0 are scored.
      gate: one of `GATES`.
      max_tokens: stop after this many scores.

    Returns:
      float32 [N], row by row and in text order (`budget.make_controller` walks through it as a text).

    Raises:
      ConfigError: an unknown gate. DataError: no batch, or no valid position.
    """
    index = GATES.index(resolve_gate(gate, uses_call=True))
    if gate == "random":  # Its distribution is known.
        return np.random.default_rng(0).random(max_tokens, dtype=np.float32)
    graphdef, state = nnx.split(model)
    found: list[np.ndarray] = []
    total = 0
    for batch in batches:
        scores = _batch_scores(graphdef, state, batch.tokens, batch.positions, batch.segment_ids)
        scores = np.asarray(scores)[..., index]
        kept = scores[np.asarray(batch.weights) > 0]
        found.append(kept)
        total += kept.size
        if total >= max_tokens:
            break
    if total == 0:
        raise DataError("no validation token to calibrate the gate on: the validation split is empty")
    return np.concatenate(found)[:max_tokens].astype(np.float32)
