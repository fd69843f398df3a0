"""Muon: orthogonalised momentum for the matrices between the embedding and the heads (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; at scale: Liu et al., arXiv:2502.16982).

The momentum of each matrix, U S V^T, is turned into about U V^T by five Newton-Schulz steps of optax. A matrix is what
activations are multiplied by: a stacked parameter holds one per layer, and (heads, head_dim) count as one axis.
Embeddings, the base head, the CALL head, norms and biases keep the optimiser given for the others.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_collections
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from lacy_jax.errors import ConfigError
from lacy_jax.models.axes import Axes


def matrix_axes(axes: Axes) -> MuonDimensionNumbers | None:
    """The input and the output dimensions of a hidden matrix; None if the parameter is not one.

    Args:
      axes: logical names, such as ("layers", "embed", "heads", "head_dim"): inputs (1,), outputs (2, 3).
    """
    if axes[:1] != ("layers",):
        return None
    sides: list[tuple[int, ...]] = []
    for place, name in enumerate(axes[1:], start=1):
        if name == "head_dim" and sides:
            sides[-1] += (place,)
        else:
            sides.append((place,))
    return MuonDimensionNumbers(*sides) if len(sides) == 2 else None


def _whole_matrices(updates: Any, params: Any = None) -> Any:
    """Shard stacked matrices over `fsdp` by layer if their number allows, so that each lies on one device.

    Otherwise every product of the five steps would exchange parts; this way there is one exchange before and one after.
    """
    shards = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)

    def whole(leaf: jax.Array) -> jax.Array:
        if shards == 1 or leaf.shape[0] % shards:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, jax.P("fsdp"))

    return jax.tree.map(whole, updates)


def muon(
    c: ml_collections.ConfigDict, logical_axes: Any, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Updates for a learning rate of 1: by Muon for the matrices that `matrix_axes` finds, by `others` for the rest.

    A matrix of A inputs and B outputs moves by `update_rms` * sqrt(max(A, B)) times an orthogonal matrix, so that an
    entry moves by about `update_rms`; with 0.2, which is about what AdamW does, learning rate and weight decay are
    AdamW's (arXiv:2502.16982 §2.2). `update_rms` = 0 is the scale of the original, sqrt(max(1, B / A)), which needs a
    learning rate of its own: set that of the other parameters with `optimizer.lr_scale`.

    Args:
      c: config group `optimizer`: momentum (Nesterov), eps, update_rms.
      logical_axes: like the parameters.
      others: the optimiser of the parameters that are not matrices of a layer.

    Raises:
      ConfigError: momentum or update_rms is out of range.
    """
    if not 0 <= c.momentum < 1:
        raise ConfigError(f"config.optimizer.momentum = {c.momentum}: must be in [0, 1)")
    if c.update_rms < 0:
        raise ConfigError(
            f"config.optimizer.update_rms = {c.update_rms}: must be positive, or 0 for sqrt(max(1, B / A))"
        )

    def is_axes(node: Any) -> bool:
        return isinstance(node, tuple)

    kinds = jax.tree.map(
        lambda axes: "others" if matrix_axes(axes) is None else "muon", logical_axes, is_leaf=is_axes
    )
    matrices = jax.tree.map(
        lambda axes: optax.MaskedNode() if (found := matrix_axes(axes)) is None else found,
        logical_axes,
        is_leaf=is_axes,
    )

    def scaled(update: jax.Array, sides: MuonDimensionNumbers) -> jax.Array:
        inputs, outputs = (math.prod(update.shape[axis] for axis in side) for side in sides)
        shape = (
            c.update_rms * math.sqrt(max(inputs, outputs))
            if c.update_rms
            else math.sqrt(max(1, outputs / inputs))
        )
        return shape * update

    published = optax.chain(
        optax.stateless(_whole_matrices),
        optax.contrib.scale_by_muon(beta=c.momentum, eps=c.eps, weight_dimension_numbers=lambda _: matrices),
        optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, matrices)),
    )
    return optax.partition({"muon": published, "others": others}, kinds)
