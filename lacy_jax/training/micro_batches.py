"""Micro-batches: how a batch is cut into them (`train.accumulation`), and the metrics of all from those of each."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from lacy_jax.objectives import LossMetrics
from lacy_jax.training import sharding

Rows = TypeVar("Rows")

_MEANS_OVER_VALID = (
    "loss",
    "call_loss",
    "learn_loss",
    "z_loss",
    "factual_rate",
    "realised_call_rate",
    "threshold",
    "nll_all",
    "p_call",
)


def split(batch: Rows, parts: int, mesh: Mesh) -> Rows:
    """[B, T] -> [A, B / A, T]: micro-batch i takes rows i, i + A, ... Every device splits its own rows."""
    where = NamedSharding(mesh, jax.P(None, *sharding.TOKENS))

    def own(rows: Array) -> Array:
        grouped = rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.swapaxes(grouped, 0, 1), where)

    return jax.tree.map(own, batch)


def join(stacked: Rows, mesh: Mesh) -> Rows:
    """Inverse of `split`: [A, B / A, T] -> [B, T]."""
    where = NamedSharding(mesh, jax.P(*sharding.TOKENS))

    def own(parts: Array) -> Array:
        rows = jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])
        return jax.lax.with_sharding_constraint(rows, where)

    return jax.tree.map(own, stacked)


def combine_metrics(stacked: LossMetrics) -> LossMetrics:
    """Metrics of the batch from those of A micro-batches [A]: counts are added, means weighted by their numbers of tokens.

    The threshold, one per micro-batch, is averaged like the loss.
    """
    m = stacked
    facts = m.factual_rate * m.weight_sum
    over = {
        **dict.fromkeys(_MEANS_OVER_VALID, m.weight_sum),
        "nll_called": m.n_called,
        "nll_learned": m.n_learned,
        "nll_factual": facts,
        "nll_other": m.weight_sum - facts,
        **({} if m.n_queries is None else {"query_loss": m.n_queries, "query_right": m.n_queries}),
    }

    def combine(name: str) -> Array:
        values = getattr(m, name)
        if name not in over:
            return jnp.sum(values)
        return jnp.sum(values * over[name]) / jnp.maximum(jnp.sum(over[name]), 1.0)

    return LossMetrics(**{name: combine(name) for name in m.present})
