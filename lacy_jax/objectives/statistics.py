"""Per-token statistics of a model's output distribution, forward only: for evaluation and inference gates."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from lacy_jax.objectives.linear import chunk_statistics, default_chunk, over_chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStatistics:
    """Arrays [B, T]; logits and entropies in nats, over the base vocabulary (CALL left out).

    Attributes:
      nll: lse - z[target], the negative log of p_\\CALL(target).
      lse: lse_V.
      call_logit: c; p(CALL) = sigmoid(call_logit - lse).
      max_z: largest base logit.
      second_z: second largest; the margin is max_z - second_z, 0 on a tie.
      entropy: of p_\\CALL.
      gap: largest logit of V+1 minus z[target], exactly 0 where nothing, CALL included, beats the target: what
        policy `idk` asks `delegation_mask` for.
      top1_correct: the first of the largest logits, as greedy decoding picks it, is the target.
    """

    nll: Float[Array, "B T"]
    lse: Float[Array, "B T"]
    call_logit: Float[Array, "B T"]
    max_z: Float[Array, "B T"]
    second_z: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    gap: Float[Array, "B T"]
    top1_correct: Bool[Array, "B T"]


def token_statistics(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    call_vector: Float[Array, D],
    targets: Int32[Array, "B T"],
    *,
    chunk: int = 0,
) -> TokenStatistics:
    """Everything the gates and the evaluation need to know of each position, without [B, T, V] logits.

    Args:
      hidden: [B, T, D], float32 or bfloat16.
      kernel: [V, D] base head, V at least 2.
      call_vector: [D] CALL head.
      targets: [B, T] in [0, V); any valid id where there is no target (only nll and top1_correct look at it).
      chunk: tokens per chunk and device; 0 = chosen from V.
    """
    size = chunk or default_chunk(kernel.shape[0])
    lse, z_target, max_z, second_z, entropy, correct = over_chunks(
        _full_statistics, hidden, kernel, targets, size
    )
    call_logit = jnp.einsum("btd,d->bt", hidden, call_vector, preferred_element_type=jnp.float32)
    gap = jnp.maximum(max_z, call_logit) - z_target
    return TokenStatistics(lse - z_target, lse, call_logit, max_z, second_z, entropy, gap, correct)


def _full_statistics(z: Float[Array, "B C V"], targets: Int32[Array, "B C"]) -> tuple[Array, ...]:
    lse, z_target, max_z = chunk_statistics(z, targets)
    best = jnp.argmax(z, axis=-1)
    columns = jax.lax.broadcasted_iota(best.dtype, z.shape, z.ndim - 1)
    second_z = jnp.max(jnp.where(columns == best[..., None], -jnp.inf, z), axis=-1)
    log_p = z - lse[..., None]
    # Logits of -inf (a masked piece) contribute nothing rather than 0 * inf.
    entropy = -jnp.sum(jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0.0), axis=-1)
    return lse, z_target, max_z, second_z, entropy, best == targets
