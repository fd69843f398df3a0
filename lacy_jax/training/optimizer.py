"""Optimisers, learning-rate schedules, which parameters decay, and the exponential average of the parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib

from lacy_jax.errors import ConfigError
from lacy_jax.formatting import exact
from lacy_jax.registry import Registry
from lacy_jax.training.muon import muon


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One schedule of the learning rate after the warm-up.

    Attributes:
      name: as in the config field `optimizer.schedule`.
      description: one line for help texts and docs.
      after_warmup: (config, steps of the warm-up) -> optax schedule; its step 0 is the first after the warm-up, and the
        last update of the run has step `train.steps - warm-up - 1`.
    """

    name: str
    description: str
    after_warmup: Callable[[ml_collections.ConfigDict, int], optax.Schedule] = dataclasses.field(repr=False)


def _constant(config: ml_collections.ConfigDict, warmup: int) -> optax.Schedule:
    return optax.constant_schedule(config.optimizer.learning_rate)


def _cosine(config: ml_collections.ConfigDict, warmup: int) -> optax.Schedule:
    c, steps = config.optimizer, config.train.steps - warmup - 1
    if not steps:  # The first update after the warm-up is the last.
        return optax.constant_schedule(c.learning_rate * c.final_lr_fraction)
    return optax.cosine_decay_schedule(c.learning_rate, steps, alpha=c.final_lr_fraction)


def _wsd(config: ml_collections.ConfigDict, warmup: int) -> optax.Schedule:
    c, steps = config.optimizer, config.train.steps
    if not 0 < c.decay_fraction <= 1:
        raise ConfigError(f"config.optimizer.decay_fraction = {c.decay_fraction}: must be in (0, 1]")
    decay = max(round(exact(c.decay_fraction) * steps), 1)
    if warmup + decay > steps:
        raise ConfigError(
            f"config.optimizer.decay_fraction = {c.decay_fraction}: warm-up ({warmup}) and decay ({decay}) "
            f"exceed train.steps = {steps}"
        )
    peak, final = c.learning_rate, c.learning_rate * c.final_lr_fraction
    down = optax.linear_schedule(peak, final, decay)
    # The last update at the peak: -1 if it is the warm-up's last, which optax's `transition_begin` cannot express.
    top = steps - warmup - decay - 1
    return lambda step: down(step - top)


SCHEDULES: Registry[Schedule] = Registry("schedule", (
    Schedule("cosine", "half a cosine down to final_lr_fraction of the peak at the last step", _cosine),
    Schedule("wsd", "flat, then linear down over the last decay_fraction of the steps (warmup-stable-decay)", _wsd),
    Schedule("constant", "flat", _constant),
))  # fmt: skip


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Step (int, from 0) -> learning rate.

    Linear warm-up over `optimizer.warmup_steps` (step 0 already has a rate of peak / warmup), then one of `SCHEDULES`.

    Raises:
      ConfigError: warm-up and decay do not fit into `train.steps`.
    """
    c, steps = config.optimizer, config.train.steps
    peak, warmup = c.learning_rate, int(c.warmup_steps)
    if not 0 <= c.final_lr_fraction <= 1:
        raise ConfigError(f"config.optimizer.final_lr_fraction = {c.final_lr_fraction}: must be in [0, 1]")
    if warmup < 0 or warmup >= steps:
        raise ConfigError(f"config.optimizer.warmup_steps = {warmup}: must be in [0, train.steps = {steps})")
    body = SCHEDULES.named(c.schedule).after_warmup(config, warmup)
    if warmup == 0:
        return body
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, body], [warmup])


def decay_mask(logical_axes: Any) -> Any:
    """True for each parameter that weight decay applies to: matrices, not vectors (norm scales, biases, CALL head).

    A parameter counts as a matrix if it has at least two axes, where "layers", which only stacks layers, does not count
    and the pair (heads, head_dim) counts as one.

    Args:
      logical_axes: pytree of tuples of axis names.
    """

    def is_matrix(axes: tuple[str | None, ...]) -> bool:
        own = [a for a in axes if a != "layers"]
        return len(own) - ("head_dim" in own and len(own) > 1) >= 2

    return jax.tree.map(is_matrix, logical_axes, is_leaf=lambda x: isinstance(x, tuple))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One way to turn clipped gradients into updates for a learning rate of 1.

    Attributes:
      name: as in the config field `optimizer.name`.
      description: one line for help texts and docs.
      parts: (run config, logical axes like the parameters) -> transformations in order; decoupled weight decay, on matrices
        only, and the learning rate follow them.
    """

    name: str
    description: str
    parts: Callable[[ml_collections.ConfigDict, Any], Sequence[optax.GradientTransformation]] = (
        dataclasses.field(repr=False)
    )


def _adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    c = config.optimizer
    return optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=c.eps)


def _adamw(config: ml_collections.ConfigDict, logical_axes: Any) -> Sequence[optax.GradientTransformation]:
    return (_adam(config),)


def _muon(config: ml_collections.ConfigDict, logical_axes: Any) -> Sequence[optax.GradientTransformation]:
    return (muon(config.optimizer, logical_axes, others=_adam(config)),)


def _ademamix(config: ml_collections.ConfigDict, logical_axes: Any) -> Sequence[optax.GradientTransformation]:
    """arXiv:2409.03137 with both schedules of §3.2 over the whole run: alpha, and the half-life of the slow average, linear.

    Raises:
      ConfigError: slow_b or slow_share is out of range.
    """
    c, steps = config.optimizer, config.train.steps
    if not c.b1 <= c.slow_b < 1:
        raise ConfigError(f"config.optimizer.slow_b = {c.slow_b}: must be in [optimizer.b1 = {c.b1}, 1)")
    if c.slow_share < 0:
        raise ConfigError(f"config.optimizer.slow_share = {c.slow_share}: must not be negative")

    def decay(step: jax.Array) -> jax.Array:
        share = jnp.minimum(step / steps, 1.0)
        return jnp.exp(1 / ((1 - share) / math.log(c.b1) + share / math.log(c.slow_b)))

    alpha = optax.linear_schedule(0.0, c.slow_share, steps)
    return (optax.contrib.scale_by_ademamix(c.b1, c.b2, decay, alpha, c.eps),)


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer", (
    Optimizer("adamw", "AdamW: b1, b2, eps", _adamw),
    Optimizer("muon", "Muon on the matrices of the layers, each orthogonalised by itself: momentum, update_rms; AdamW on the rest", _muon),
    Optimizer("ademamix", "AdEMAMix: AdamW and a slow average of the gradient, slow_b, slow_share", _ademamix),
))  # fmt: skip


def make_optimizer(
    config: ml_collections.ConfigDict, logical_axes: Any, rates: Any = None
) -> optax.GradientTransformation:
    """Global-norm clipping, then one of `OPTIMIZERS`, under the schedule of the config.

    The step count of the schedule is part of the optimiser state, so a dropped update (train.on_nan = "skip") does not
    advance it, and does not enter the average of `optimizer.ema_decay` either.

    Args:
      config: reads `optimizer` and `train.steps`.
      logical_axes: pytree of tuples of axis names, like the trained parameters.
      rates: pytree of factors of the learning rate, which broadcast to each parameter; None = all 1.

    Raises:
      ConfigError: a schedule that does not fit the steps.
    """
    c = config.optimizer
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm > 0 else optax.identity()
    return optax.chain(
        clip,
        *OPTIMIZERS.named(c.name).parts(config, logical_axes),
        optax.add_decayed_weights(c.weight_decay, mask=decay_mask(logical_axes)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
        *([_scale_each(rates)] if rates is not None else []),
        *([average_parameters(c.ema_decay)] if c.ema_decay else []),
    )


def _scale_each(rates: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates))


class ParameterAverage(NamedTuple):
    """State of `average_parameters`: int32 [] updates so far, and the sum, like the parameters."""

    updates: jax.Array
    total: Any


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; last in a chain, where updates are final. Changes none.

    After t updates the total is sum_s (1 - decay) decay^(t - s) params_s over the parameters after each update s, and
    `averaged` divides it by the sum of its weights, so the initial parameters do not count.

    Args:
      decay: in (0, 1); 0.999 averages over about the last thousand updates.

    Raises:
      ConfigError: out of range.
    """
    if not 0 < decay < 1:
        raise ConfigError(f"config.optimizer.ema_decay = {decay}: must be in (0, 1), or 0 for no average")

    def init(params: Any) -> ParameterAverage:
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: ParameterAverage, params: Any) -> tuple[Any, ParameterAverage]:
        new = optax.apply_updates(params, updates)
        total = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, state.total, new)
        return updates, ParameterAverage(state.updates + 1, total)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any, decay: float) -> Any | None:
    """The average in an optimiser state, shaped like the parameters; None if there is none, or none yet."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, ParameterAverage))
    found = [state for state in states if isinstance(state, ParameterAverage)]
    if not found or not int(found[0].updates):
        return None
    weights = 1.0 - float(decay) ** int(found[0].updates)
    return jax.tree.map(lambda total: total / weights, found[0].total)
