"""Delegated cross-entropy (arXiv:2602.12005 §4): one driver over two ways to compute the per-token parts.

    L = 1/N sum_i m_i [ C_i * softplus(lse_V - c) + (1 - C_i) * nll ],   N = sum_i m_i

`fused_parts` never forms [B, T, V] logits; `reference_parts` forms them and takes plain log-softmaxes, for tests and
small models. Mask, weighting and metrics are the same for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from lacy_jax.default_config import CALL_OBJECTIVES, LOSSES
from lacy_jax.errors import ConfigError
from lacy_jax.objectives.linear import linear_statistics
from lacy_jax.objectives.policies import Delegation, Policy, TokenLabels, delegation_mask, get_policy
from lacy_jax.objectives.query import QueryLoss

# Makes 0 / 0 equal 0 if a batch has no valid target, without changing any other quotient.
_TINY = float(jnp.finfo(jnp.float32).tiny)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossMetrics:
    """Scalars of one (micro-)batch, float32. A mean over no tokens is 0.

    Attributes:
      loss: the minimised quantity: call_loss + learn_loss + z_loss, and the query head's loss if there is one.
      call_loss: the part of the loss with CALL as target, per valid token.
      learn_loss: the part with the ground truth as target, per valid token.
      z_loss: the part from lse_V**2, including its coefficient.
      weight_sum: N, the sum of the weights of the valid targets.
      n_called: targets with any weight on CALL.
      n_learned: ground-truth-gradient tokens, that is, targets with any weight on the truth.
      n_ignored: valid targets without any gradient.
      factual_rate: factual share of the valid targets.
      realised_call_rate: n_called divided by the number of valid targets.
      threshold: see Delegation.threshold.
      nll_all, nll_called, nll_learned, nll_factual, nll_other: mean nll (CALL renormalised out), nats, of all
        valid targets, those called, learned, factual, and not factual.
      p_call: mean p(CALL) over all valid targets.
      n_queries: delegated targets for which an entry was asked; query_loss: their mean loss, nats; query_right: the share
        of them whose entry was nearest. None without a query head.
    """

    loss: Float[Array, ""]
    call_loss: Float[Array, ""]
    learn_loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    weight_sum: Float[Array, ""]
    n_called: Float[Array, ""]
    n_learned: Float[Array, ""]
    n_ignored: Float[Array, ""]
    factual_rate: Float[Array, ""]
    realised_call_rate: Float[Array, ""]
    threshold: Float[Array, ""]
    nll_all: Float[Array, ""]
    nll_called: Float[Array, ""]
    nll_learned: Float[Array, ""]
    nll_factual: Float[Array, ""]
    nll_other: Float[Array, ""]
    p_call: Float[Array, ""]
    n_queries: Float[Array, ""] | None = None
    query_loss: Float[Array, ""] | None = None
    query_right: Float[Array, ""] | None = None

    @property
    def present(self) -> list[str]:
        """The names of those that are not None."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Per-token quantities that the loss and the mask are computed from: float32 [B, T], nats.

    Attributes:
      nll: nll of the target, CALL renormalised out: lse_V - z[target].
      call_nll, no_call_nll: negative logs of p(CALL) and of 1 - p(CALL) under the softmax over V+1.
      lse: lse_V.
      gap: see `TokenStatistics.gap`; not differentiated.
    """

    nll: Float[Array, "B T"]
    call_nll: Float[Array, "B T"]
    no_call_nll: Float[Array, "B T"]
    lse: Float[Array, "B T"]
    gap: Float[Array, "B T"]


def fused_parts(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    call_vector: Float[Array, D],
    targets: Int32[Array, "B T"],
    chunk: int = 0,
    keep: int = 0,
    tied: bool = True,
) -> Parts:
    """The parts without [B, T, V] logits, unless they take no more than `keep` bytes; under `jax.set_mesh` the
    vocabulary matmuls run per shard of the tokens.
    """
    lse, z_target, max_z = linear_statistics(hidden, kernel, targets, chunk=chunk, keep=keep, tied=tied)
    call_logit = jnp.einsum("btd,d->bt", hidden, call_vector, preferred_element_type=jnp.float32)
    gap = jnp.maximum(max_z, call_logit) - z_target
    return Parts(
        lse - z_target, jax.nn.softplus(lse - call_logit), jax.nn.softplus(call_logit - lse), lse, gap
    )


def reference_parts(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    call_vector: Float[Array, D],
    targets: Int32[Array, "B T"],
    chunk: int = 0,
    keep: int = 0,
    tied: bool = True,
) -> Parts:
    """The parts by plain log-softmaxes over full [B, T, V+1] logits; `chunk`, `keep` and `tied` are not used."""
    del chunk, keep, tied
    z = jnp.einsum("btd,vd->btv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    c = jnp.einsum("btd,d->bt", hidden, call_vector, preferred_element_type=jnp.float32)[..., None]
    joint = jax.nn.log_softmax(jnp.concatenate([z, c], axis=-1), axis=-1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(z, axis=-1), targets[..., None], axis=-1)[..., 0]
    joint_nll = -jnp.take_along_axis(joint, targets[..., None], axis=-1)[..., 0]
    lse = jax.nn.logsumexp(z, axis=-1)
    return Parts(nll, -joint[..., -1], joint_nll - nll, lse, jnp.max(joint, axis=-1) + joint_nll)


def parts_by(loss: str) -> Callable[..., Parts]:
    """`fused_parts` or `reference_parts`, as `objective.loss` says.

    Raises:
      ConfigError: it says neither.
    """
    return fused_parts if LOSSES.named(loss).name == "fused" else reference_parts


@jax.named_scope("loss")
def delegated_cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    call_vector: Float[Array, D],
    targets: Int32[Array, "B T"],
    weights: Array,
    labels: TokenLabels,
    *,
    policy: str | Policy,
    call_rate: float,
    call_objective: str = "renormalised",
    z_loss: float = 0.0,
    ignore_rate: float = 0.15,
    rng: jax.Array | None = None,
    chunk: int = 0,
    keep: int = 0,
    loss: str = "fused",
    mask: Delegation | None = None,
    tied: bool = True,
    query: Callable[[Float[Array, "B T"]], QueryLoss] | None = None,
    query_weight: float = 1.0,
) -> tuple[Float[Array, ""], LossMetrics]:
    """The loss of one global (micro-)batch under a delegation policy, and its metrics (arXiv:2602.12005 §4).

    All policies share this path and cost the same; the mask enters as per-token coefficients. Under `jax.set_mesh`
    with batch axes "data" and/or "fsdp" the mask is that of the global batch.

    Args:
      hidden: [B, T, D] after the final norm, float32 or bfloat16.
      kernel: [V, D] float32 base head (the embedding, if tied).
      call_vector: [D] float32 CALL head.
      targets: [B, T] int32 in [0, V); CALL is never a target.
      weights: [B, T] bool or float, the validity m; every part is divided by N, the sum of weights, so padding,
        ignored tokens and layout do not change the scale. N = 0 gives loss 0.
      labels: the targets' labels [B, T] by name: "factual", by which the metrics are split, and those that the
        policy reads.
      policy, call_rate, ignore_rate, rng: see `delegation_mask`.
      call_objective: "renormalised": the loss of learned targets is nll, CALL renormalised out, so CALL gets no
        gradient from them (the paper); "full": it is that under the softmax over V+1, which calibrates CALL.
        Policy `idk` is defined under the softmax over V+1 and always uses it; policies without CALL always use nll.
      z_loss: coefficient of lse_V**2, which is added for every target that has a gradient.
      chunk: tokens per chunk and device; 0 = chosen from V.
      keep: bytes of logits that a device may keep for the backward pass instead of making them again; see
        `linear_statistics`.
      loss: "fused", or "reference", which materialises the logits.
      mask: one that was made before, of a batch that these rows are part of; None = of these rows.
      tied: whether the kernel is the embedding; decides how its gradient is exchanged (`linear_statistics`).
      query: the query head's loss, from the weight of CALL at each target [B, T] (`query_loss`); None = no such head.
      query_weight: its weight beside the other parts.

    Returns:
      (loss, metrics); the loss is differentiable in hidden, kernel and call_vector.

    Raises:
      ConfigError: an unknown policy, call_objective or loss, a missing input, or a rate out of range.
    """
    chosen, _ = get_policy(policy), CALL_OBJECTIVES.named(call_objective)
    if labels.get("factual") is None:
        raise ConfigError("labels have no 'factual', by which the metrics of the loss are split")
    parts = parts_by(loss)(hidden, kernel, call_vector, targets, chunk, keep, tied)
    if mask is None:
        mask = delegation_mask(
            chosen, nll=parts.nll, weights=weights, labels=labels, call_rate=call_rate, ignore_rate=ignore_rate,
            rng=rng, gap=parts.gap,
        )  # fmt: skip
    loss_of_all, metrics = _combine(chosen, call_objective, z_loss, mask, weights, labels["factual"], parts)
    if query is None:
        return loss_of_all, metrics
    asked = query(jnp.where(weights > 0, weights.astype(jnp.float32) * mask.call, 0.0))
    loss_of_all += query_weight * asked.total / jnp.maximum(metrics.weight_sum, _TINY)
    each = jnp.maximum(asked.count, 1)
    of_queries = {
        "n_queries": asked.count,
        "query_loss": asked.nats / each,
        "query_right": asked.right / each,
    }
    constant = jax.tree.map(lax.stop_gradient, {"loss": loss_of_all, **of_queries})
    return loss_of_all, dataclasses.replace(metrics, **constant)


def _combine(
    policy: Policy,
    call_objective: str,
    z_coefficient: float,
    mask: Delegation,
    weights: Array,
    factual: Array,
    parts: Parts,
) -> tuple[Array, LossMetrics]:
    """Per-token parts [B, T] -> loss and metrics. Here the loss is normalised, all parts by the same N."""
    valid, weights = weights > 0, weights.astype(jnp.float32)
    n_weight, n_valid = jnp.sum(weights), jnp.sum(valid, dtype=jnp.float32)

    def mean(values: Array, over: Array, total: Array) -> Array:
        # `where` instead of a product, because the loss on padding may be infinite.
        return jnp.sum(jnp.where(over > 0, values * over, 0.0)) / jnp.maximum(total, _TINY)

    nll, learn_nll = parts.nll, parts.nll
    if policy.soft:
        # Where the top-1 is right (no weight on CALL), idk's false-positive term -log(1 - p(CALL)) is added again.
        learn_nll = nll + parts.no_call_nll * jnp.where(mask.call > 0, 1.0, 2.0)
    elif policy.uses_call and call_objective == "full":
        learn_nll = nll + parts.no_call_nll
    call_loss = mean(parts.call_nll, weights * mask.call, n_weight)
    learn_loss = mean(learn_nll, weights * mask.learn, n_weight)
    active = valid & (mask.call + mask.learn > 0)
    z_part = (
        z_coefficient * mean(jnp.square(parts.lse), weights * active, n_weight)
        if z_coefficient
        else jnp.float32(0)
    )
    loss = call_loss + learn_loss + z_part

    called, learned = mask.call > 0, mask.learn > 0
    facts = valid & factual.astype(bool)

    def count(which: Array) -> Array:
        return jnp.sum(which, dtype=jnp.float32)

    def class_mean(which: Array, values: Array = nll) -> Array:
        return mean(values, which.astype(jnp.float32), count(which))

    n_called, n_learned = count(called), count(learned)
    metrics = LossMetrics(
        loss=loss,
        call_loss=call_loss,
        learn_loss=learn_loss,
        z_loss=z_part,
        weight_sum=n_weight,
        n_called=n_called,
        n_learned=n_learned,
        n_ignored=n_valid - count(active),
        factual_rate=count(facts) / jnp.maximum(n_valid, 1),
        realised_call_rate=n_called / jnp.maximum(n_valid, 1),
        threshold=mask.threshold,
        nll_all=class_mean(valid),
        nll_called=class_mean(called),
        nll_learned=class_mean(learned),
        nll_factual=class_mean(facts),
        nll_other=class_mean(valid & ~facts),
        p_call=class_mean(valid, jnp.exp(-parts.call_nll)),
    )
    return loss, jax.tree.map(lax.stop_gradient, metrics)
