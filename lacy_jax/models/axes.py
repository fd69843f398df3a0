"""Logical axis names. Which mesh axis a name maps to is the business of training, not of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from flax import nnx
from jaxtyping import Array

# "embed": the model width in a matrix. "feature": the model width in a vector (norm scales, biases, CALL),
# too small to be worth sharding. "layers": the scanned axis, first of every parameter of a layer.
LOGICAL_AXES = ("vocab", "position", "embed", "feature", "layers", "heads", "kv_heads", "head_dim", "mlp")
# Of activations, beside "heads" and "kv_heads"; None stands for an axis that is not cut.
ACTIVATION_AXES = ("batch", "sequence")

Axes = tuple[str | None, ...]


class Partition(Protocol):
    """How activations lie on devices: given to the model by training, which knows the mesh."""

    def constrain(self, x: Array, axes: Axes) -> Array:
        """`x` with a sharding constraint for its logical axes."""
        ...

    def parts(self, axis: str) -> int:
        """How many parts a logical axis of activations is cut into."""
        ...

    def mesh_axis(self, axis: str) -> str:
        """The name of the one mesh axis that a logical axis lies along, for collectives."""
        ...

    def per_shard(
        self, fn: Callable[..., Array], in_axes: Sequence[Axes], out_axes: Axes
    ) -> Callable[..., Array]:
        """`fn` run on each device's part (`jax.shard_map`): for kernels the compiler can't split."""
        ...


def parameter(value: Array, axes: tuple[str, ...]) -> nnx.Param:
    """A parameter that carries one logical axis name per dimension.

    The names travel as plain metadata under our own key: Flax's `sharding_names` would be resolved against a
    mesh the moment the parameter is created, and a model must not need a mesh.
    """
    assert value.ndim == len(axes), (value.shape, axes)
    assert set(axes) <= set(LOGICAL_AXES), axes
    return nnx.Param(value, logical_axes=axes)


def logical_axes(model_or_state: nnx.Module | nnx.State) -> Any:
    """The logical axes of every parameter, as a tree like the parameters' own.

    Args:
      model_or_state: a model, or `nnx.state(model, nnx.Param)`; abstract (`nnx.eval_shape`) ones will do.

    Returns:
      An `nnx.State` of the same structure whose values are tuples of names. Mapping it with
      `jax.tree.map(f, axes, is_leaf=lambda x: isinstance(x, tuple))` gives a tree with the very structure of
      the parameters, fit for `out_shardings`.
    """
    state = nnx.state(model_or_state, nnx.Param) if isinstance(model_or_state, nnx.Module) else model_or_state
    return jax.tree.map(
        lambda variable: variable.replace(variable.get_metadata("logical_axes")),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
