"""The query head's loss: InfoNCE toward the vector of the entry that a delegated target comes from (arXiv:1807.03748 §2.3).

    L_i = log sum_j exp(s q_i . v_j) - s q_i . v_i,   j over the distinct entries of the global (micro-)batch

q_i is the query of a hidden state, v_j the vector of an entry, both of length 1, and s the inverse temperature. A batch holds
the entries of all linked targets of its documents, delegated or not, so other facts of the same entity are among the
negatives, beside the same facts of others and those that were mined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryTargets:
    """The entries of each row of a batch: what is asked for, and what else might be.

    Attributes:
      entries: numbers of entries, each at most once in a row; 0 = an empty place.
      vectors: their unit vectors, float32.
    """

    entries: Int32[Array, "B C"]
    vectors: Float[Array, "B C Q"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryLoss:
    """Sums over the targets that were asked for, float32.

    Attributes:
      total: of the loss, weighted by what of a target is delegated.
      count: targets. right: those whose entry is nearest to the query of all entries of the batch. nats: of the loss.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]
    right: Float[Array, ""]
    nats: Float[Array, ""]


def most_queries(seq_len: int, call_rate: float) -> int:
    """Queries that a row has room for: half as many again as are delegated on average, in eights. Only these cost anything."""
    return min(seq_len, max(8, -(-int(1.5 * call_rate * seq_len) // 8) * 8))


@jax.named_scope("query")
def query_loss(
    hidden: Float[Array, "B T D"],
    project: Callable[[Array], Array],
    sharpness: Float[Array, ""],
    linked: Int32[Array, "B T"],
    targets: QueryTargets,
    delegated: Float[Array, "B T"],
    most: int,
) -> QueryLoss:
    """The loss of one global (micro-)batch. Under `jax.set_mesh` its negatives are those of all devices.

    Args:
      hidden: [B, T, D] after the final norm.
      project: hidden states -> unit vectors, float32.
      sharpness: s.
      linked: number of the entry that each target comes from, 0 = none.
      targets: the entries of the rows.
      delegated: weight of CALL at each target; a constant for differentiation.
      most: queries of a row; of more, the first ones are taken.
    """
    delegated = lax.stop_gradient(jnp.where(linked > 0, delegated, 0.0))
    _, places = lax.top_k((delegated > 0).astype(jnp.int32), most)  # Of equals, the first ones.
    weight, entry = (jnp.take_along_axis(a, places, axis=1) for a in (delegated, linked))
    same = entry[:, :, None] == targets.entries[:, None, :]
    weight = jnp.where(same.any(-1), weight, 0.0)
    slot = jnp.argmax(same, axis=-1)
    queries = project(jnp.take_along_axis(hidden, places[:, :, None], axis=1))  # B K Q
    own = jnp.take_along_axis(targets.vectors, slot[:, :, None], axis=1)
    entries = _everywhere(targets.entries.reshape(-1))
    vectors = _everywhere(targets.vectors.reshape(-1, targets.vectors.shape[-1]))
    similar = sharpness * jnp.einsum("bkq,nq->bkn", queries, vectors, preferred_element_type=jnp.float32)
    similar = jnp.where(_first_of_equals(entries), similar, -jnp.inf)
    asked = weight > 0
    # Where nothing is asked there may be no entry in the batch; zeros keep infinities out of the gradient.
    others = jax.nn.logsumexp(jnp.where(asked[:, :, None], similar, 0.0), axis=-1)
    losses = jnp.where(asked, others - sharpness * jnp.sum(queries * own, axis=-1), 0.0)
    nearest = entries[jnp.argmax(similar, axis=-1)]
    return QueryLoss(
        total=jnp.sum(weight * losses),
        count=jnp.sum(asked, dtype=jnp.float32),
        right=jnp.sum(asked & (nearest == entry), dtype=jnp.float32),
        nats=jnp.sum(losses),
    )


def _everywhere(a: Array) -> Array:
    """The whole array on every device: each needs all entries, which are small beside its activations."""
    return lax.with_sharding_constraint(a, jax.P()) if jax.sharding.get_abstract_mesh().shape else a


def _first_of_equals(entries: Int32[Array, " N"]) -> Bool[Array, " N"]:
    """True for the first place of each number but 0: an entry that several rows have counts once."""
    order = jnp.argsort(entries, stable=True)
    ordered = entries[order]
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]]) & (ordered > 0)
    return jnp.zeros(entries.shape, bool).at[order].set(first)
