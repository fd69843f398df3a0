"""Per-token statistics of a model's output distribution, forward only, for evaluation and gates.

`head_statistics` defines every figure from the logits of a position; `token_statistics` computes the same from hidden
states, chunk by chunk. Logits are computed in the dtype of the hidden states with float32 sums, as in the loss and in
decoding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from lacy_jax.objectives.linear import chunk_statistics, default_chunk, log_sum_exp, over_chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadStatistics:
    """What the two heads predict for the next token: float32 arrays of one shape, int32 for `top1`.

    They are JAX arrays where they are computed and numpy arrays where they are read. Logits and entropies are in nats,
    over the base vocabulary (without CALL).

    Attributes:
      lse: lse_V.
      call_logit: c; p(CALL) = sigmoid(call_logit - lse).
      max_z: largest base logit.
      second_z: second largest; the margin is max_z - second_z, 0 on a tie.
      entropy: entropy of p_\\CALL.
      top1: index of the (first) largest logit, as in greedy decoding.
    """

    lse: Float[Array, "*S"]
    call_logit: Float[Array, "*S"]
    max_z: Float[Array, "*S"]
    second_z: Float[Array, "*S"]
    entropy: Float[Array, "*S"]
    top1: Int32[Array, "*S"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStatistics(HeadStatistics):
    """`HeadStatistics`, and the figures for the token that actually follows.

    Attributes:
      nll: lse - z[target], the negative log of p_\\CALL(target).
      gap: largest logit of V+1 minus z[target]; exactly 0 where no other piece, nor CALL, has a larger logit than the
        target. Policy `idk` needs it.
    """

    nll: Float[Array, "*S"]
    gap: Float[Array, "*S"]


def head_statistics(z: Float[Array, "*S V"], call_logit: Float[Array, "*S"]) -> HeadStatistics:
    """Statistics from float32 base logits (V at least 2) and CALL logits."""
    lse, max_z, second_z, entropy, top1 = _of_logits(z)
    return HeadStatistics(lse, call_logit, max_z, second_z, entropy, top1)


def _of_logits(z: Float[Array, "*S V"]) -> tuple[Array, ...]:
    lse, max_z = log_sum_exp(z)
    top1 = jnp.argmax(z, axis=-1).astype(jnp.int32)
    columns = jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
    # Not lax.top_k, for which XLA's CPU backend sorts all of V; that costs as much as the model itself.
    second_z = jnp.max(jnp.where(columns == top1[..., None], -jnp.inf, z), axis=-1)
    # A logit of -inf (a masked piece) contributes 0 instead of 0 * inf.
    expected = jnp.sum(jnp.where(z > -jnp.inf, jnp.exp(z - lse[..., None]) * z, 0.0), axis=-1)
    return lse, max_z, second_z, lse - expected, top1


def token_statistics(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    call_vector: Float[Array, D],
    targets: Int32[Array, "B T"],
    *,
    chunk: int = 0,
) -> TokenStatistics:
    """Statistics [B, T] of each position, without [B, T, V] logits.

    Args:
      hidden: [B, T, D], float32 or bfloat16.
      kernel: [V, D] base head, V at least 2.
      call_vector: [D] CALL head.
      targets: [B, T] in [0, V); any valid id where there is no target (only nll and gap depend on it).
      chunk: tokens per chunk and device; 0 = chosen from V.
    """

    def both(z: Array, targets: Array) -> tuple[Array, ...]:
        return (*_of_logits(z), chunk_statistics(z, targets)[1])

    size = chunk or default_chunk(kernel.shape[0])
    lse, max_z, second_z, entropy, top1, z_target = over_chunks(both, hidden, kernel, targets, size)
    call_logit = jnp.einsum("btd,d->bt", hidden, call_vector, preferred_element_type=jnp.float32)
    return TokenStatistics(
        lse, call_logit, max_z, second_z, entropy, top1,
        nll=lse - z_target, gap=jnp.maximum(max_z, call_logit) - z_target,
    )  # fmt: skip
