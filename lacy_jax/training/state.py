"""The train state: made once, already sharded, and never anywhere else in one piece."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from lacy_jax.models import ModelConfig, Transformer, logical_axes
from lacy_jax.training import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step on the devices.

    Attributes:
      step: batches consumed. Random numbers of a step derive from (seed, step), so no key is carried along.
      params: nested dict of float32 arrays (the master weights; compute may be bfloat16).
      opt_state: of the optax optimiser; its moments lie where their parameters lie.
      skipped: updates dropped so far because loss or gradient was not finite.
      skipped_in_row: of these, how many since the last good step.
    """

    step: Int32[Array, ""]
    params: Any
    opt_state: Any
    skipped: Int32[Array, ""]
    skipped_in_row: Int32[Array, ""]

    def optimizer_items(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the parameters."""
        return {
            "opt_state": self.opt_state,
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }


class ModelDefinition:
    """A model apart from its parameters: how to make them, what their axes mean, how to put the two together.

    Attributes:
      config: its dimensions.
      abstract_params: nested dict of `jax.ShapeDtypeStruct`.
      axes: the same, with a tuple of logical axis names per parameter.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self._structure = jax.tree.structure(state)
        self.abstract_params = _pure(state)
        structure = jax.tree.structure(self.abstract_params)
        names = jax.tree.leaves(logical_axes(state), is_leaf=lambda x: isinstance(x, tuple))
        self.axes = jax.tree.unflatten(structure, names)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, nested dict."""
        return _pure(nnx.state(Transformer(self.config, rngs=nnx.Rngs(key)), nnx.Param))

    def merge(self, params: Any) -> Transformer:
        """The model with these parameters; works on tracers."""
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, jax.tree.leaves(params)))


def _pure(state: nnx.State) -> Any:
    """nnx.State -> nested dict with the same order of leaves."""
    pure = nnx.to_pure_dict(state)
    names = [[str(getattr(k, "key", k)) for k in path] for path, _ in jax.tree.flatten_with_path(pure)[0]]
    held = [
        [str(getattr(k, "key", k)) for k in path][: len(n)]
        for (path, _), n in zip(jax.tree.flatten_with_path(state)[0], names)
    ]
    assert names == held, "parameters of nnx.State and of its dict differ in order"
    return pure


def state_shardings(model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Where each part of the state lies: a `TrainState` of `NamedSharding`.

    Raises:
      ConfigError: a parameter does not fit the mesh (see `sharding.partition_spec`).
    """
    params = sharding.parameter_shardings(model.abstract_params, model.axes, mesh)
    whole = sharding.replicated(mesh)
    opt_state = optax.tree_map_params(
        tx,
        lambda _, where: where,
        jax.eval_shape(tx.init, model.abstract_params),
        params,
        transform_non_params=lambda _: whole,
    )
    places: dict[str, Any] = {"step": whole, "skipped": whole, "skipped_in_row": whole}
    return TrainState(params=params, opt_state=opt_state, **places)


def abstract_state(model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without the state: what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda: _fresh(model, tx, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        state_shardings(model, tx, mesh),
    )


def init_state(model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state. Each device makes only its own part; the values do not depend on the mesh."""
    make = jax.jit(lambda key: _fresh(model, tx, key), out_shardings=state_shardings(model, tx, mesh))
    return make(random_key(seed, "init"))


_STREAMS = ("init", "steps", "validation")


def random_key(seed: int, stream: str) -> jax.Array:
    """One of the run's independent random streams: "init", "steps" (folded with the step) or "validation"."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))


def _fresh(model: ModelDefinition, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    # A constant leaf must still be its own buffer: the state is donated, and a buffer can be given away only once.
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )
