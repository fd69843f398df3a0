"""The parts of a layer that have a form or a gradient of their own, against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lacy_jax.models.layers import (
    add_bias,
    gelu,
    look_up,
    product,
    rotary_frequencies,
    rotate,
    turn_halves,
    turn_reversed,
)

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_as_close_to_its_formula_as_jax_is_with_its_gradient(dtype):
    x = jnp.concatenate([jnp.linspace(-6, 6, 241), jnp.asarray([-1e4, -50.0, 50.0, 1e4])]).astype(dtype)
    wide = np.asarray(x, np.float64)
    slope = np.sqrt(2 / np.pi)
    t = np.tanh(slope * (wide + 0.044715 * wide**3))
    value = wide / 2 * (1 + t)
    gradient = (1 + t) / 2 + wide / 2 * (1 - t * t) * slope * (1 + 3 * 0.044715 * wide**2)

    def errors(function):
        found = (function(x), *jax.vjp(function, x)[1](jnp.ones_like(x)))
        return [
            np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(found, (value, gradient), strict=True)
        ]

    for ours, theirs in zip(errors(gelu), errors(jax.nn.gelu), strict=True):
        assert ours <= 1.5 * theirs < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_rotary_positions_is_that_of_the_formula(dtype):
    """`rotate` has a gradient of its own: the rotation back."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, weights = (jax.random.normal(key, (2, 7, 3, 8)).astype(dtype) for key in keys)
    positions = jnp.arange(14).reshape(2, 7)

    def plain(x):
        angles = positions[:, :, None, None] * rotary_frequencies(8, 1e4, ())
        first, second = x[..., :4].astype(jnp.float32), x[..., 4:].astype(jnp.float32)
        turned = (
            first * jnp.cos(angles) - second * jnp.sin(angles),
            second * jnp.cos(angles) + first * jnp.sin(angles),
        )
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)

    def ours(x):
        return rotate(x, positions, 1e4, ())

    (value, back), (want, want_back) = jax.vjp(ours, x), jax.vjp(plain, x)
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(value.astype(float), want.astype(float), rtol=tolerance, atol=tolerance)
    (gradient,), (want_gradient,) = back(weights), want_back(weights)
    np.testing.assert_allclose(
        gradient.astype(float), want_gradient.astype(float), rtol=tolerance, atol=tolerance
    )
    assert gradient.dtype == x.dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tpu_turns_halves_as_others_do(dtype):
    """It is the same sum in another order; XLA may fuse one product of each into it, here and there not the same."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 7, 3, 8)).astype(dtype)
    angles = jax.random.normal(keys[1], (2, 7, 1, 4))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    want, found = turn_halves(x, cos, sin), turn_reversed(x, cos, sin)
    assert found.dtype == want.dtype == x.dtype
    np.testing.assert_allclose(
        found.astype(float), want.astype(float), rtol=1e-6 if dtype == "float32" else 0.01, atol=1e-6
    )


@pytest.mark.parametrize(("platform", "reversed_"), [("tpu", True), ("cpu", False)])
def test_which_platform_turns_by_a_reversal(platform, reversed_):
    """Forward and backward."""

    def turned(x):
        return jax.vjp(lambda x: rotate(x, jnp.arange(14).reshape(2, 7), 1e4, ()), x)[1](x)

    program = jax.export.export(jax.jit(turned), platforms=[platform])(jnp.ones((2, 7, 3, 8))).mlir_module()
    assert ("stablehlo.reverse" in program) == reversed_


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-5)])
def test_the_gradient_of_a_bias_of_heads_is_a_sum_in_float32(dtype, tolerance):
    """In 16 bits it is a product with ones: of many tokens it keeps what a sum in 16 bits would lose."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = (jax.random.normal(key, (4, 600, 3, 8)).astype(dtype) for key in keys[:2])
    bias = jax.random.normal(keys[2], (3, 8))
    value, back = jax.vjp(add_bias, x, bias)
    assert value.dtype == x.dtype
    np.testing.assert_array_equal(value, x + bias.astype(dtype))
    of_x, of_bias = jax.jit(back)(weights)
    np.testing.assert_array_equal(of_x, weights)
    assert of_bias.dtype == bias.dtype
    want = np.asarray(weights.astype(jnp.float32), np.float64).sum((0, 1))
    np.testing.assert_allclose(of_bias, want, rtol=tolerance, atol=240 * tolerance)


# Of each product with a matrix of a layer: the matrix, how many of its axes are those of the input, and the product.
_PRODUCTS = [((6, 8), 1, "btd,df->btf"), ((6, 2, 4), 1, "btd,dhk->bthk"), ((2, 4, 6), 2, "bthk,hkd->btd")]


@pytest.mark.parametrize(
    ("shape", "inputs", "equation"), _PRODUCTS, ids=[equation for *_, equation in _PRODUCTS]
)
def test_a_product_and_its_gradients_are_the_usual_ones_with_barriers_on_a_cpu_only(shape, inputs, equation):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(3, 5, *shape[:inputs])), jnp.float32)

    def of(multiply):
        return jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(jnp.sin(multiply(w, x))), (0, 1)))

    ours = of(lambda w, x: product(equation, x, nnx.Param(w), inputs=inputs))
    plain = of(lambda w, x: jnp.einsum(equation, x, w))
    for a, b in zip(*(jax.tree.leaves(f(w, x)) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
    for platform, barriers in (("cpu", 2), ("tpu", 0)):
        text = ours.trace(w, x).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.optimization_barrier") == barriers


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the compiler of jax 0.10 does it all the same")
def test_on_a_cpu_the_gradient_of_an_activation_is_computed_once():
    """And not once more, along the wrong axis, for the product that wants it transposed. The compiler is asked: it may change."""
    args = jnp.ones((64, 128)), jnp.ones((8, 32, 64)), jnp.ones((8, 32, 128))

    def multiplications(multiply):
        def gradients(w, x, wanted):
            return jax.vjp(lambda w, x: gelu(multiply(w, x)), w, x)[1](wanted)

        return jax.jit(gradients).lower(*args).compile().as_text().count(" multiply(")

    ours = multiplications(lambda w, x: product("btd,df->btf", x, nnx.Param(w)))
    plain = multiplications(lambda w, x: jnp.einsum("btd,df->btf", x, w))
    assert ours < 0.7 * plain


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_gradient_of_a_table_is_added_up_in_float32(dtype):
    """A token that stands in a row many times: in 16 bits the sum would stop growing."""
    tokens = jnp.concatenate([jnp.zeros(2000, jnp.int32), jnp.arange(6)])[None]  # 5 is clipped.
    table = jax.random.normal(jax.random.key(0), (5, 3), dtype)
    weights = jax.random.uniform(jax.random.key(1), (*tokens.shape, 3), jnp.float32).astype(jnp.bfloat16)

    def total(table):
        rows = look_up(table, tokens, jnp.bfloat16)
        assert rows.dtype == jnp.bfloat16
        return jnp.sum((rows * weights).astype(jnp.float32))

    np.testing.assert_array_equal(
        look_up(table, tokens, jnp.bfloat16), np.asarray(table.astype(jnp.bfloat16))[np.clip(tokens, 0, 4)]
    )
    found = jax.grad(total)(table)
    assert found.dtype == dtype
    expected = np.zeros((5, 3), np.float64)
    np.add.at(expected, np.clip(tokens, 0, 4), np.asarray(weights, np.float64))
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=2.0**-8 if dtype == jnp.bfloat16 else 1e-5
    )
