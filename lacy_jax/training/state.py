"""The train state. It is created sharded, and never exists unsharded anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from lacy_jax.models import ModelConfig, Transformer, logical_axes
from lacy_jax.training import sharding
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.trainable import Trainable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step on the devices.

    Attributes:
      step: batches consumed. Random numbers of a step derive from (seed, step), so no key is carried along.
      params: nested dict of float32 arrays (the master weights; compute may be bfloat16).
      opt_state: state of the optax optimiser for the trained parameters; its moments are sharded like the parameters.
      skipped: updates dropped so far because loss or gradient was not finite.
      skipped_in_row: updates dropped since the last good step.
    """

    step: Int32[Array, ""]
    params: Any
    opt_state: Any
    skipped: Int32[Array, ""]
    skipped_in_row: Int32[Array, ""]

    def optimizer_items(self) -> dict[str, Any]:
        """The parts of a checkpoint beside the parameters."""
        return {
            "opt_state": self.opt_state,
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }


class ModelDefinition:
    """A model without its parameters: how to initialise them, their logical axes, and how to merge them into the model.

    Attributes:
      config: the dimensions.
      abstract_params: nested dict of `jax.ShapeDtypeStruct`.
      axes: the same, with a tuple of logical axis names per parameter.
      trained: which parameters are trained.

    Raises:
      ConfigError: see `Trainable`.
    """

    def __init__(self, config: ModelConfig, trainable: Sequence[str] = ()):
        self.config = config
        abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        self._structure = jax.tree.structure(abstract)
        self.abstract_params = _pure(abstract)
        names = jax.tree.leaves(logical_axes(abstract), is_leaf=lambda x: isinstance(x, tuple))
        self.axes = jax.tree.unflatten(jax.tree.structure(self.abstract_params), names)
        self.trained = Trainable(config, self.abstract_params, self.axes, trainable)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters as a nested dict."""
        return _pure(Transformer(self.config, rngs=nnx.Rngs(key)))

    def merge(self, params: Any) -> Transformer:
        """The model with these parameters, which may be tracers."""
        return jax.tree.unflatten(self._structure, jax.tree.leaves(params))


def _pure(model: Transformer) -> Any:
    """The parameters of a model as a nested dict with the leaves in the same order."""
    pure = nnx.to_pure_dict(nnx.state(model))
    assert all(a is b for a, b in zip(jax.tree.leaves(pure), jax.tree.leaves(model), strict=True)), (
        "their order"
    )
    return pure


def optimizer_for(config: ml_collections.ConfigDict, model: ModelDefinition) -> optax.GradientTransformation:
    """The optimiser of a run config for the trained parameters of `model`.

    Raises:
      ConfigError: see `make_optimizer` and `Trainable.rates`.
    """
    trained = model.trained
    return make_optimizer(config, trained.pick(model.axes), trained.rates(config.optimizer.lr_scale))


def state_shardings(
    model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh, over_data: bool = False
) -> Any:
    """The shardings of the state: a `TrainState` of `NamedSharding`; `over_data` is `train.shard_optimizer`.

    Raises:
      ConfigError: a parameter does not fit the mesh (see `sharding.partition_spec`).
    """
    params = sharding.parameter_shardings(model.abstract_params, model.axes, mesh, over_data)
    whole = sharding.replicated(mesh)
    opt_state = optax.tree_map_params(
        tx,
        lambda leaf, where: leaf if isinstance(leaf, optax.MaskedNode) else where,
        jax.eval_shape(tx.init, model.trained.select(model.abstract_params)),
        model.trained.pick(params),
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),  # For parameters of another optimiser.
    )
    places: dict[str, Any] = {"step": whole, "skipped": whole, "skipped_in_row": whole}
    return TrainState(params=params, opt_state=opt_state, **places)


def abstract_state(
    model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh, over_data: bool = False
) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring a checkpoint."""
    shapes = jax.eval_shape(lambda: _fresh(model, tx, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        state_shardings(model, tx, mesh, over_data),
    )


def init_state(
    model: ModelDefinition, tx: optax.GradientTransformation, mesh: Mesh, seed: int, over_data: bool = False
) -> TrainState:
    """A fresh state. Each device creates only its own part; the values do not depend on the mesh."""
    where = state_shardings(model, tx, mesh, over_data)
    make = jax.jit(lambda key: _fresh(model, tx, key), out_shardings=where)
    return make(random_key(seed, "init"))


_STREAMS = ("init", "steps", "validation")


def random_key(seed: int, stream: str) -> jax.Array:
    """One of the run's independent random streams: "init", "steps" (folded with the step) or "validation"."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))


def _fresh(model: ModelDefinition, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    # Constant leaves need separate buffers, because the state is donated and a buffer can be donated only once.
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(model.trained.select(params)),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )
