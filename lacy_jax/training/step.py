"""One optimiser step, as one compiled function of (state, batch).

With `train.accumulation = A` the batch of B sequences is split into A micro-batches of B / A: micro-batch i has the rows
i, i + A, i + 2A, ..., which keeps the rows of a device on that device. The delegation mask is made per micro-batch (the
"mini-batch" of the paper), or with `objective.mask_scope = "step"` over the whole batch, from the nll of a first pass forward:
then it is the mask of A = 1. The loss is normalised over the whole batch: each micro-batch contributes the SUM over its
targets, and the total is divided by the number of valid targets of all micro-batches, so micro-batches with more padding
count less, and accumulation by itself changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from lacy_jax import objectives
from lacy_jax.config import xla_options_of
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.query_links import QUERY_ENTRY
from lacy_jax.default_config import MASK_SCOPES
from lacy_jax.errors import ConfigError
from lacy_jax.objectives import Delegation, LossMetrics, QueryLoss, TokenLabels, TokenStatistics
from lacy_jax.objectives.loss import Parts
from lacy_jax.objectives.scoring import score_tokens
from lacy_jax.training import sharding
from lacy_jax.training.chips import SCATTER_OPTIONS, SPLIT_OPTIONS, SUM_OPTIONS
from lacy_jax.training.micro_batches import combine_metrics, join, split
from lacy_jax.training.optimizer import learning_rate_schedule
from lacy_jax.training.quantization import quantized
from lacy_jax.training.state import ModelDefinition, TrainState, random_key

_KEPT_LOGITS = 512 << 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step, float32 unless stated otherwise.

    Attributes:
      loss: `LossMetrics` of the whole batch.
      grad_norm: global norm of the gradient before clipping.
      learning_rate: the learning rate of this update.
      finite: bool, whether loss and gradient are finite. If not, the update was dropped inside the step.
      skipped, skipped_in_row: int32, dropped updates in total and since the last good step.
    """

    loss: LossMetrics
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Array
    skipped: Array
    skipped_in_row: Array


TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, StepMetrics]]


def make_train_step(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    reference: ModelDefinition | None = None,
) -> TrainStep:
    """The jitted step `(state, batch, reference_params) -> (state, metrics)`; the state is donated.

    Call it under `jax.set_mesh(mesh)`, with a batch from `sharding.put_batch`. `reference_params` is None unless
    `reference` is given. If loss or gradient is not finite, parameters and optimiser state stay unchanged, bit for bit,
    and the metrics say so.
    """
    schedule = learning_rate_schedule(config)
    micro_batches = config.train.accumulation
    seed = config.seed

    gather, scatter = _gatherings(config, model, mesh, shardings)
    one_mask = micro_batches > 1 and MASK_SCOPES.named(config.objective.mask_scope).name == "step"

    def loss_sum(
        trained: Any,
        params: Any,
        batch: Batch,
        key: jax.Array,
        reference_params: Any,
        mask: Delegation | None,
    ) -> tuple[Array, LossMetrics]:
        params = model.trained.join(params, trained)
        loss, metrics = _loss(config, model, mesh, params, batch, key, reference, reference_params, mask)
        return loss * metrics.weight_sum, metrics

    def mask_of_all(params: Any, parts: Batch, key: jax.Array, reference_params: Any) -> Delegation:
        """The mask of the whole batch, [A, B / A, T], from the nll of its micro-batches one after the other."""

        def signals(_: None, part: tuple[Array, Batch]) -> tuple[None, tuple[Array, Array, Any]]:
            index, rows = part
            labels = with_reference(rows, reference, reference_params, mesh, config.objective.chunk)
            found = _parts(config, model, mesh, params, rows, jax.random.fold_in(key, index))
            return None, (found.nll, found.gap, labels)

        _, found = jax.lax.scan(signals, None, (jnp.arange(micro_batches), parts))
        weights, (nll, gap, labels) = join(parts.weights, mesh), join(found, mesh)
        _, mask_key = jax.random.split(jax.random.fold_in(key, 0))  # As of the only micro-batch.
        c = config.objective
        mask = objectives.delegation_mask(
            c.policy, nll=nll, weights=weights, labels=labels, call_rate=c.call_rate, ignore_rate=c.ignore_rate,
            rng=mask_key, gap=gap,
        )  # fmt: skip
        call, learn = split((mask.call, mask.learn), micro_batches, mesh)
        same = (jnp.broadcast_to(scalar, micro_batches) for scalar in (mask.threshold, mask.count))
        return Delegation(call, learn, *same)

    def train_step(state: TrainState, batch: Batch, reference_params: Any) -> tuple[TrainState, StepMetrics]:
        # -- gradient of the sum over targets, micro-batch by micro-batch --------------------------------------
        key = jax.random.fold_in(random_key(seed, "steps"), state.step)
        params = gather(state.params)
        trained = model.trained.select(params)

        def gradient(rows: Batch, index: Any, mask: Delegation | None) -> tuple[Any, LossMetrics]:
            keys = jax.random.fold_in(key, index)
            grads, metrics = jax.grad(loss_sum, has_aux=True)(
                trained, params, rows, keys, reference_params, mask
            )
            return scatter(grads), metrics

        def accumulate(total: Any, part: tuple[Array, Batch, Delegation | None]) -> tuple[Any, LossMetrics]:
            index, rows, mask = part
            grads, metrics = gradient(rows, index, mask)
            return jax.tree.map(jnp.add, total, grads), metrics

        if micro_batches == 1:
            sums, metrics = gradient(batch, 0, None)
        else:
            zeros = jax.tree.map(jnp.zeros_like, model.trained.select(state.params))
            parts = split(batch, micro_batches, mesh)
            mask = mask_of_all(params, parts, key, reference_params) if one_mask else None
            sums, stacked = jax.lax.scan(accumulate, zeros, (jnp.arange(micro_batches), parts, mask))
            metrics = combine_metrics(stacked)
        grads = jax.tree.map(lambda g: g / jnp.maximum(metrics.weight_sum, 1.0), sums)

        # -- update, dropped if anything is not finite -----------------------------------------------------------
        with jax.named_scope("optimizer"):
            masters, opt_state, grad_norm, finite = updated(
                tx,
                model.trained.select(state.params),
                state.opt_state,
                grads,
                metrics.loss,
                in_two_parts(mesh),
            )
            params = model.trained.join(state.params, masters)
        bad = (~finite).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + bad,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        )
        learning_rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
        return new_state, StepMetrics(
            metrics, grad_norm, learning_rate, finite, new_state.skipped, new_state.skipped_in_row
        )

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, whole),
        compiler_options=compiler_options(config, mesh) or None,
    )


def kept_logits(mesh: Mesh) -> int:
    """Bytes of logits that a device keeps for the backward pass instead of making them again: a CPU is short of arithmetic, not
    of memory.
    """
    return _KEPT_LOGITS if _platform(mesh) == "cpu" else 0


def in_two_parts(mesh: Mesh) -> bool:
    """Whether `updated` writes the parameters first: on a CPU, but what several devices exchange they would exchange twice."""
    return _platform(mesh) == "cpu" and mesh.size == 1


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def updated(
    tx: optax.GradientTransformation, params: Any, opt_state: Any, grads: Any, loss: Array, apart: bool
) -> tuple[Any, Any, Array, Array]:
    """One update: (parameters, optimiser state, norm of the gradient, whether norm and `loss` are finite).

    If they are not, parameters and state come back unchanged, bit for bit. `apart`: the state follows the parameters, by an update
    of which nothing else is computed. A CPU writes arrays one after the other, and the compiler would copy the old state first,
    of which the parameters are made.
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    updates, new_state = tx.update(grads, opt_state, params)
    new_params = kept(optax.apply_updates(params, updates), params)
    if apart:
        opt_state, new_params = jax.lax.optimization_barrier((opt_state, new_params))
        new_state = tx.update(grads, opt_state, params)[1]
    return new_params, kept(new_state, opt_state), grad_norm, finite


def compiler_options(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, str]:
    """XLA's options for the step, on TPUs only: ours, and those of the config, which come last."""
    if _platform(mesh) != "tpu":
        return {}
    options = {}
    if config.train.shard_optimizer or mesh.shape["fsdp"] > 1:
        flat = len({device.coords[2] for device in mesh.devices.flat}) == 1
        options = SPLIT_OPTIONS | (SCATTER_OPTIONS if flat else SUM_OPTIONS)
    return options | xla_options_of(config)


def refused_options(config: ml_collections.ConfigDict, error: Exception) -> ConfigError | None:
    """The error of a compiler that does not take `train.compiler_options`, in one line; None if `error` is another."""
    first = str(error).partition("\n")[0].strip().rstrip(":")
    if not config.train.compiler_options or not any(words in first for words in _OPTION_REFUSED):
        return None
    return ConfigError(f"config.train.compiler_options = {config.train.compiler_options}: {first}")


_OPTION_REFUSED = ("No such compile option", "into flag")


def _gatherings(
    config: ml_collections.ConfigDict, model: ModelDefinition, mesh: Mesh, shardings: TrainState
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(gather, scatter) of a step: parameters as the model uses them, and gradients as the optimiser does.

    Both do nothing without `train.shard_optimizer`. With it, parameters are split over `data` between steps and gathered
    once in a step (ZeRO stage 1, arXiv:1910.02054, with the master weights). Matrices and tables, which the model would
    round to its compute type anyway, are rounded before they are gathered, and so are their gradients, which each device adds up
    in float32, before they are exchanged.
    """
    if not config.train.shard_optimizer:
        return lambda params: params, lambda grads: grads
    dtype = jnp.dtype(model.config.dtype)
    whole = sharding.parameter_shardings(model.abstract_params, model.axes, mesh)
    parts = model.trained.pick(shardings.params)

    def gathered(param: Array, where: NamedSharding, names: tuple[str, ...]) -> Array:
        if "embed" not in names:  # Vectors are small, whole on every device, and used in float32.
            return param
        if config.train.quantization == "none":  # Quantisation starts from float32.
            param = param.astype(dtype)
        if names[0] == "layers" and not model.config.scan_layers:
            # Each layer's by itself, when it is needed and in the order in which it is read; XLA drops the stack.
            one = NamedSharding(mesh, jax.P(*where.spec[1:]))
            return jnp.stack([jax.lax.with_sharding_constraint(layer, one) for layer in param])
        return jax.lax.with_sharding_constraint(param, where)

    def scattered(grad: Array, where: NamedSharding) -> Array:
        return jax.lax.with_sharding_constraint(grad, where).astype(jnp.float32)

    @jax.named_scope("optimizer")
    def gather(params: Any) -> Any:
        return jax.tree.map(gathered, params, whole, model.axes)

    return gather, lambda grads: jax.tree.map(scattered, grads, parts)


def _loss(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    mesh: Mesh,
    params: Any,
    batch: Batch,
    key: jax.Array,
    reference: ModelDefinition | None,
    reference_params: Any,
    mask: Delegation | None = None,
) -> tuple[Array, LossMetrics]:
    """Loss of one micro-batch, normalised by its own valid targets; `mask` None = its own."""
    c = config.objective
    dropout_key, mask_key = jax.random.split(key)
    network = model.merge(params)
    hidden = _hidden(config, model, mesh, network, batch, dropout_key)

    def query(delegated: Array) -> QueryLoss:
        assert batch.queries is not None
        linked = batch.labels[QUERY_ENTRY].astype(jnp.int32)
        most = objectives.most_queries(config.input.seq_len, c.call_rate)
        return objectives.query_loss(
            hidden, network.queries, network.query_sharpness(), linked, batch.queries, delegated, most
        )

    return objectives.delegated_cross_entropy(
        hidden,
        network.head_kernel(),
        network.call_vector(),
        batch.targets,
        batch.weights,
        with_reference(batch, reference, reference_params, mesh, c.chunk),
        policy=c.policy,
        call_rate=c.call_rate,
        call_objective=c.call_objective,
        z_loss=c.z_loss,
        ignore_rate=c.ignore_rate,
        rng=mask_key,
        chunk=c.chunk,
        keep=kept_logits(mesh),
        loss=c.loss,
        mask=mask,
        tied=model.config.tie_head,
        query=None if batch.queries is None else query,
        query_weight=c.query_weight,
    )


def _hidden(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    mesh: Mesh,
    network: Any,
    batch: Batch,
    dropout_key: jax.Array,
) -> Array:
    """[B, T, D] of a micro-batch, as training sees it."""
    return quantized(network, config.train.quantization)(
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        deterministic=False,
        rngs=nnx.Rngs(dropout=dropout_key),
        first_trained=model.trained.first_layer,
        partition=sharding.ActivationPartition(mesh),
    )


def _parts(
    config: ml_collections.ConfigDict,
    model: ModelDefinition,
    mesh: Mesh,
    params: Any,
    batch: Batch,
    key: jax.Array,
) -> Parts:
    """What the mask of a micro-batch is made of, with the dropout that its loss will have."""
    network = model.merge(params)
    hidden = _hidden(config, model, mesh, network, batch, jax.random.split(key)[0])
    parts_of = objectives.parts_by(config.objective.loss)
    return parts_of(
        hidden,
        network.head_kernel(),
        network.call_vector(),
        batch.targets,
        config.objective.chunk,
        kept_logits(mesh),
    )


def score(model: ModelDefinition, params: Any, batch: Batch, mesh: Mesh, chunk: int = 0) -> TokenStatistics:
    """Statistics [B, T] of a batch on a mesh, forward only."""
    return score_tokens(
        model.merge(params), batch.tokens, batch.targets, batch.positions, batch.segment_ids,
        partition=sharding.ActivationPartition(mesh), chunk=chunk,
    )  # fmt: skip


def with_reference(
    batch: Batch, reference: ModelDefinition | None, params: Any, mesh: Mesh, chunk: int = 0
) -> TokenLabels:
    """The batch's labels, with `reference_nll` from the run's frozen reference model if there is one."""
    if reference is None:
        return batch.labels
    return {**batch.labels, "reference_nll": score(reference, params, batch, mesh, chunk).nll}
