"""Logical axis names. Training, not the model, maps them to mesh axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from flax import nnx
from jaxtyping import Array

LOGICAL_AXES = (
    "vocab", "position", "embed", "feature", "layers", "heads", "kv_heads", "head_dim", "mlp", "query",
)  # fmt: skip
"""Axes of parameters. "embed": the model width in a matrix. "feature": the model width in a vector (norm scales, biases,
CALL), too small to be worth sharding. "layers": the scanned axis, the first of every layer parameter. "query": the vectors of
the query head."""

Axes = tuple[str | None, ...]
"""Axes of activations: "batch", "sequence", "heads", "kv_heads"; None is an axis that is not split."""


class Partition(Protocol):
    """How activations are sharded; training, which knows the mesh, gives it to the model."""

    def constrain(self, x: Array, axes: Axes) -> Array:
        """`x` with a sharding constraint for its logical axes."""
        ...

    def parts(self, axis: str) -> int:
        """The number of parts that a logical axis of activations is split into."""
        ...

    def mesh_axis(self, axis: str) -> str:
        """The name of the single mesh axis that a logical axis maps to, for collectives."""
        ...

    def per_shard(
        self, fn: Callable[..., Array], in_axes: Sequence[Axes], out_axes: Axes
    ) -> Callable[..., Array]:
        """`fn` applied to each device's part (`jax.shard_map`), for kernels that the compiler cannot split."""
        ...


def parameter(value: Array, axes: tuple[str, ...]) -> nnx.Param:
    """A parameter that carries one logical axis name per dimension.

    The names are plain metadata under our own key: Flax would resolve its own `sharding_names` against a mesh when the
    parameter is created, and a model must not need a mesh.
    """
    assert value.ndim == len(axes), (value.shape, axes)
    assert set(axes) <= set(LOGICAL_AXES), axes
    return nnx.Param(value, logical_axes=axes)


def logical_axes(model_or_state: nnx.Module | nnx.State) -> Any:
    """The logical axes of every parameter, as a tree with the parameters' structure.

    Args:
      model_or_state: a model, or `nnx.state(model, nnx.Param)`; either may be abstract (`nnx.eval_shape`).

    Returns:
      An `nnx.State` of the same structure with tuples of names as values. Mapping it with
      `jax.tree.map(f, axes, is_leaf=lambda x: isinstance(x, tuple))` gives a tree with exactly the structure of
      the parameters, as `out_shardings` needs it.
    """
    state = nnx.state(model_or_state, nnx.Param) if isinstance(model_or_state, nnx.Module) else model_or_state
    return jax.tree.map(
        lambda variable: variable.replace(variable.get_metadata("logical_axes")),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
