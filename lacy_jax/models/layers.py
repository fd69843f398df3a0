"""One transformer layer of each family. Parameters of all L layers are stacked on a first axis "layers"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from lacy_jax.models.axes import parameter
from lacy_jax.models.config import ModelConfig

INIT_STD = 0.02  # GPT-2's
_GELU = 2.0 * (2.0 / np.pi) ** 0.5


def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """LayerNorm over the last axis, computed in float32; returns the dtype of `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """RMSNorm over the last axis (arXiv:1910.07467), computed in float32; returns the dtype of `x`."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps) * scale).astype(x.dtype)


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """GELU by its tanh (arXiv:1606.08415 §2), x/2 (1 + tanh u), written as x sigmoid(2u): the same function, but one division
    and one exponential, forward and backward, where the tanh of a CPU is a quotient of polynomials. In float32, because the
    gradient's products would lose twice as much as those of `jax.nn.gelu` in bfloat16.
    """
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(_GELU * (wide + 0.044715 * wide * wide * wide))).astype(x.dtype)


def product(
    equation: str, x: Array, matrix: nnx.Param, bias: nnx.Param | None = None, inputs: int = 1
) -> Array:
    """`x` times a matrix of a layer, by `jnp.einsum`, plus a bias; in the dtype of `x`. The first `inputs` axes of the matrix are `x`'s.

    Values and gradients are the usual ones. On a CPU two barriers stand in the backward pass, without which XLA makes slow products of it:
    JAX multiplies with the axes of the output first and transposes the product, and XLA would make the two one product of transposed
    matrices (1.6 times as long; 12 times in bfloat16); and where the gradient of the output is transposed for it, XLA would compute
    that gradient once more, element by element along the wrong axis (the layer's feed-forward 1.5 times as long).
    """
    y = jnp.einsum(equation, x, _transposed_apart(matrix[...].astype(x.dtype), inputs))
    if bias is not None:
        y = add_bias(y, bias[...]) if bias.ndim == 2 else y + bias[...].astype(y.dtype)
    return _gradient_made_once(y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _transposed_apart(w: Array, inputs: int) -> Array:
    return w


def _transposed_apart_backward(inputs: int, _: None, gradient: Array) -> tuple[Array]:
    outputs = gradient.ndim - inputs

    def apart(gradient: Array) -> Array:
        product = gradient.transpose(*range(inputs, gradient.ndim), *range(inputs))
        return jax.lax.optimization_barrier(product).transpose(
            *range(outputs, gradient.ndim), *range(outputs)
        )

    return (_on_a_cpu(apart, gradient),)


_transposed_apart.defvjp(lambda w, inputs: (w, None), _transposed_apart_backward)


@jax.custom_vjp
def _gradient_made_once(x: Array) -> Array:
    return x


_gradient_made_once.defvjp(
    lambda x: (x, None), lambda _, gradient: (_on_a_cpu(jax.lax.optimization_barrier, gradient),)
)


def _on_a_cpu(change: Callable[[Array], Array], x: Array) -> Array:
    return jax.lax.platform_dependent(x, cpu=change, default=lambda same: same)


def rotate(
    x: Float[Array, "B T H K"], positions: Int32[Array, "B T"], theta: float, scaling: tuple[Any, ...] = ()
) -> Float[Array, "B T H K"]:
    """Rotary positions (arXiv:2104.09864); dimension i is paired with i + K/2, as in the public Llama weights."""
    frequencies = rotary_frequencies(x.shape[-1], theta, scaling)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies  # B T 1 K/2
    return _turn(x, jnp.cos(angles), jnp.sin(angles))


@jax.custom_vjp
def _turn(x: Array, cos: Array, sin: Array) -> Array:
    return jax.lax.platform_dependent(x, cos, sin, tpu=turn_reversed, default=turn_halves)


def turn_halves(x: Array, cos: Array, sin: Array) -> Array:
    """The rotation of `rotate` by cos and sin [B, T, 1, K / 2], in float32; returns the dtype of `x`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def turn_reversed(x: Array, cos: Array, sin: Array) -> Array:
    """The same as one sum: what is turned into a half is the other one. A TPU fuses a reversal, where it would write halves to memory
    before it joins them (docs/plan.md); a CPU takes four times as long.
    """
    halves, signed = x.reshape(*x.shape[:-1], 2, -1), jnp.stack([-sin, sin], axis=-2)
    others = halves[..., ::-1, :].astype(jnp.float32)
    turned = halves.astype(jnp.float32) * cos[..., None, :] + others * signed
    return turned.reshape(x.shape).astype(x.dtype)


# The gradient of a rotation is the rotation back: to the bit what differentiation gives, but as one fusion on a TPU.
_turn.defvjp(
    lambda x, cos, sin: (_turn(x, cos, sin), (cos, sin)),
    lambda angles, gradient: (_turn(gradient, angles[0], -angles[1]), None, None),
)


@jax.custom_vjp
def add_bias(x: Float[Array, "B T H K"], bias: Float[Array, "H K"]) -> Float[Array, "B T H K"]:
    """`x` plus a bias of every head; returns the dtype of `x`.

    The gradient of the bias is the sum of that of `x` over all tokens, in float32. In 16 bits it is had as a product with ones: splash
    attention keeps tokens in the lanes of a TPU, where by the compiler's clock a sum takes as long as the projection itself.
    """
    return x + bias.astype(x.dtype)


def _bias_gradients(_: None, gradient: Array) -> tuple[Array, Array]:
    if gradient.dtype == jnp.float32:  # As a product it would take six passes.
        return gradient, gradient.sum((0, 1))
    # Eight rows of ones, as many as a TPU multiplies at least; hidden from XLA, which would make the sum of it again.
    ones = jax.lax.optimization_barrier(jnp.ones((8, *gradient.shape[:2]), gradient.dtype))
    sums = jnp.einsum("obt,bthk->ohk", ones, gradient, preferred_element_type=jnp.float32)
    return gradient, sums[0]


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _bias_gradients)


def rotary_frequencies(width: int, theta: float, scaling: tuple[Any, ...]) -> np.ndarray:
    """Radians per position of each pair of dimensions, float32 [K / 2].

    Args:
      width: K.
      theta: the base.
      scaling: `ModelConfig.rope_scaling`. "linear" divides every frequency by the factor (arXiv:2306.15595).
        "llama3" (Llama 3.1) divides frequencies of wavelengths above original / low_freq_factor, keeps those of
        wavelengths below original / high_freq_factor, and blends the two in between.
    """
    frequencies = theta ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    if scaling and scaling[0] == "linear":
        frequencies = frequencies / scaling[1]
    elif scaling:
        _, factor, low, high, original = scaling
        turns = original * frequencies / (2 * np.pi)  # Full turns within the original context.
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = kept * frequencies + (1 - kept) * frequencies / factor
    return frequencies.astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(
    table: Float[Array, "V D"], places: Int32[Array, "B T"], dtype: jax.typing.DTypeLike
) -> Float[Array, "B T D"]:
    """Rows of a table, in `dtype`. The table's gradient is added up in float32 and has the type of the table."""
    return table.at[places].get(mode="clip").astype(dtype)


def _look_up_forward(
    table: Array, places: Array, dtype: jax.typing.DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return look_up(table, places, dtype), (table, places)


def _look_up_backward(
    _: jax.typing.DTypeLike, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
    table, places = saved
    total = jnp.zeros(table.shape, jnp.float32).at[places].add(gradient.astype(jnp.float32), mode="clip")
    return total.astype(table.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def dropout(x: Float[Array, "*B"], rate: float, key: jax.Array | None) -> Float[Array, "*B"]:
    """Set a share `rate` of `x` to zero and scale up the rest; without a key, return `x` itself."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


class Norm(nnx.Module):
    """LayerNorm (gpt2) or RMSNorm (llama) over the model width; `layers` = 0 if it is not stacked."""

    def __init__(self, cfg: ModelConfig, layers: int):
        shape = (layers, cfg.d_model) if layers else (cfg.d_model,)
        axes = ("layers", "feature") if layers else ("feature",)
        self.scale = parameter(jnp.ones(shape, jnp.float32), axes)
        self.bias = parameter(jnp.zeros(shape, jnp.float32), axes) if cfg.family == "gpt2" else None
        self.eps = cfg.norm_eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if self.bias is None:
            return rms_norm(x, self.scale[...], self.eps)
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Block(nnx.Module):
    """Pre-norm layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

    It is built with stacked parameters and called on one slice of them (`Transformer` slices). The caller computes the
    attention itself, between `project` and `finish`, because training and decoding attend differently.

    Initialisation as in GPT-2: normal with std 0.02, but 0.02 / sqrt(2 L) for the two projections that add to the
    residual stream, so that its variance does not grow with depth; biases 0, norms 1.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        d, h, g, k, f = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.d_ff
        residual_std = INIT_STD / (2 * cfg.n_layers) ** 0.5

        def normal(std: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
            value = std * jax.random.normal(rngs.params(), (cfg.n_layers, *shape), jnp.float32)
            return parameter(value, ("layers", *axes))

        def constant(fill: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
            return parameter(jnp.full((cfg.n_layers, *shape), fill, jnp.float32), ("layers", *axes))

        self.attention_norm = Norm(cfg, cfg.n_layers)
        self.query = normal(INIT_STD, (d, h, k), ("embed", "heads", "head_dim"))
        self.key = normal(INIT_STD, (d, g, k), ("embed", "kv_heads", "head_dim"))
        self.value = normal(INIT_STD, (d, g, k), ("embed", "kv_heads", "head_dim"))
        self.attention_out = normal(residual_std, (h, k, d), ("heads", "head_dim", "embed"))
        self.query_norm = constant(1.0, (k,), ("head_dim",)) if cfg.qk_norm else None
        self.key_norm = constant(1.0, (k,), ("head_dim",)) if cfg.qk_norm else None
        self.mlp_norm = Norm(cfg, cfg.n_layers)
        self.mlp_in = normal(INIT_STD, (d, f), ("embed", "mlp"))
        self.mlp_out = normal(residual_std, (f, d), ("mlp", "embed"))
        of_inputs, of_output, of_mlp = cfg.biases
        self.query_bias = constant(0.0, (h, k), ("heads", "head_dim")) if of_inputs else None
        self.key_bias = constant(0.0, (g, k), ("kv_heads", "head_dim")) if of_inputs else None
        self.value_bias = constant(0.0, (g, k), ("kv_heads", "head_dim")) if of_inputs else None
        self.attention_out_bias = constant(0.0, (d,), ("feature",)) if of_output else None
        self.mlp_in_bias = constant(0.0, (f,), ("mlp",)) if of_mlp else None
        self.mlp_out_bias = constant(0.0, (d,), ("feature",)) if of_mlp else None
        if cfg.family == "llama":
            self.mlp_gate = normal(INIT_STD, (d, f), ("embed", "mlp"))
            self.mlp_gate_bias = constant(0.0, (f,), ("mlp",)) if cfg.mlp_bias else None

    @jax.named_scope("attention")
    def project(
        self, x: Float[Array, "B T D"], positions: Int32[Array, "B T"]
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"], Float[Array, "B T G K"]]:
        """Queries, keys and values of the layer, normalised and rotated if the model does so."""
        y = self.attention_norm(x)
        q = product("btd,dhk->bthk", y, self.query, self.query_bias)
        k = product("btd,dgk->btgk", y, self.key, self.key_bias)
        v = product("btd,dgk->btgk", y, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            eps = self.cfg.norm_eps
            q, k = rms_norm(q, self.query_norm[...], eps), rms_norm(k, self.key_norm[...], eps)
        if self.cfg.family == "llama":
            q, k = (rotate(a, positions, self.cfg.rope_theta, self.cfg.rope_scaling) for a in (q, k))
        return q, k, v

    def finish(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B T H K"], dropout_key: jax.Array | None = None
    ) -> Float[Array, "B T D"]:
        """Add the attention output to the stream, then the feed-forward output."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        return self.add_feed_forward(self.add_attention(x, mixed, keys[0]), keys[1])

    @jax.named_scope("attention")
    def add_attention(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B T H K"], dropout_key: jax.Array | None = None
    ) -> Float[Array, "B T D"]:
        """Project the mixed values and add them to the stream."""
        out = product("bthk,hkd->btd", mixed, self.attention_out, self.attention_out_bias, inputs=2)
        return x + dropout(out, self.cfg.dropout, dropout_key)

    @jax.named_scope("mlp")
    def add_feed_forward(
        self, x: Float[Array, "B T D"], dropout_key: jax.Array | None = None
    ) -> Float[Array, "B T D"]:
        """Add the feed-forward output to the stream."""
        y = self.mlp_norm(x)
        inner = product("btd,df->btf", y, self.mlp_in, self.mlp_in_bias)
        if self.cfg.family == "llama":
            inner = jax.nn.silu(product("btd,df->btf", y, self.mlp_gate, self.mlp_gate_bias)) * inner
        else:
            inner = gelu(inner)
        out = product("btf,fd->btd", inner, self.mlp_out, self.mlp_out_bias)
        return x + dropout(out, self.cfg.dropout, dropout_key)
