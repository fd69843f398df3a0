"""Every attention against the reference, and the reference against loops in numpy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lacy_jax.errors import ConfigError
from lacy_jax.models import attention
from lacy_jax.models.attention import _splash, check_platform, choose, segment_mask

jitted = jax.jit(attention, static_argnums=4)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(fn, q, k, v, segment_ids, cotangent):
    """Output and the gradients with respect to q, k and v."""
    out, pull = jax.vjp(lambda q, k, v: fn(q, k, v, segment_ids), q, k, v)
    return out, *pull(cotangent)


def assert_same_with_gradients(fn, other, inputs, atol, seed=1):
    cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=inputs[0].shape), inputs[0].dtype)
    for got, want in zip(with_gradients(fn, *inputs, cotangent), with_gradients(other, *inputs, cotangent)):
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=atol)


xla, reference, cudnn = (
    functools.partial(attention, implementation=n) for n in ("xla", "reference", "cudnn")
)


def random_inputs(batch, length, heads, groups, width, dtype=jnp.float32, seed=0):
    random = np.random.default_rng(seed)
    q = jnp.asarray(random.normal(size=(batch, length, heads, width)), dtype)
    k, v = (jnp.asarray(random.normal(size=(batch, length, groups, width)), dtype) for _ in range(2))
    cuts = np.sort(random.integers(1, 4, (batch, length)), axis=1)
    cuts[0, -length // 5 :] = 0  # the tail of the first row is padding
    return q, k, v, jnp.asarray(cuts, jnp.int32)


def loops(q, k, v, segment_ids):
    """The definition, one query at a time, in float64."""
    q, k, v, segment_ids = (np.asarray(x, np.float64) for x in (q, k, v, segment_ids))
    out = np.zeros_like(q)
    repeat = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = [j for j in range(i + 1) if segment_ids[b, j] == segment_ids[b, i]]
        scores = np.array([q[b, i, h] @ k[b, j, h // repeat] for j in keys]) / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = sum(w * v[b, j, h // repeat] for w, j in zip(weights / weights.sum(), keys))
    return out


def test_reference_is_the_definition():
    inputs = random_inputs(2, 13, 4, 2, 6)
    np.testing.assert_allclose(jitted(*inputs, "reference"), loops(*inputs), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 13, 4, 2, 6), (1, 150, 4, 1, 16), (2, 300, 2, 2, 8)])
def test_xla_equals_reference_with_gradients(shape):
    assert_same_with_gradients(xla, reference, random_inputs(*shape), 2e-5)


def test_xla_agrees_with_jax_nn():
    q, k, v, ids = random_inputs(2, 96, 4, 2, 16)
    want = jax.nn.dot_product_attention(q, k, v, mask=segment_mask(ids), implementation="xla")
    np.testing.assert_allclose(jitted(q, k, v, ids, "xla"), want, atol=1e-5)


def test_large_scores_stay_finite():
    q, k, v, ids = random_inputs(1, 70, 2, 2, 8)
    for fn in (xla, reference):
        for value in with_gradients(fn, q * 1e4, k, v, ids, jnp.ones_like(q)):
            assert np.isfinite(value).all()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_bfloat16_keeps_softmax_in_float32(implementation):
    q, k, v, ids = random_inputs(1, 80, 2, 1, 32, jnp.bfloat16)
    got = jitted(q, k, v, ids, implementation)
    assert got.dtype == jnp.bfloat16
    want = loops(*(x.astype(jnp.float32) for x in (q, k, v)), ids)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


def test_splash_equals_reference_with_gradients():
    interpreted = functools.partial(_splash, interpret=True)
    assert_same_with_gradients(interpreted, reference, random_inputs(2, 128, 2, 1, 64), 2e-5)


def test_splash_lowers_for_tpu_with_its_backward_kernels():
    q, k, v, ids = random_inputs(1, 256, 4, 2, 64, jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, ids, "splash").astype(jnp.float32).sum()))
    lowered = jax.export.export(gradient, platforms=["tpu"])(q, k, v)
    assert lowered.mlir_module().count("tpu_custom_call") >= 2


class MeshPartition:
    """A minimal `Partition`, as training would give one."""

    def __init__(self, mesh):
        self.mesh = mesh

    def _spec(self, axes):
        return jax.P(*({"batch": "data", "heads": "tensor", "kv_heads": "tensor"}.get(a) for a in axes))

    def constrain(self, x, axes):
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self._spec(axes)))

    def per_shard(self, fn, in_axes, out_axes):
        specs = tuple(self._spec(axes) for axes in in_axes)
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=specs, out_specs=self._spec(out_axes), check_vma=False
        )


def test_splash_runs_on_each_device_alone_under_a_partition():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    q, k, v, ids = random_inputs(4, 128, 4, 2, 64, jnp.bfloat16)
    fn = jax.jit(lambda q, k, v: attention(q, k, v, ids, "splash", MeshPartition(mesh)))
    text = jax.export.export(fn, platforms=["tpu"])(q, k, v).mlir_module()
    kernel = next(line for line in text.splitlines() if "tpu_custom_call" in line)
    assert "tensor<2x128x64xbf16>" in kernel, "one row and two of the four heads per device"


def test_auto_by_platform():
    assert choose("cpu", 128, 64, jnp.float32) == "xla"
    assert choose("gpu", 128, 64, jnp.float32) == "xla"
    assert choose("gpu", 128, 64, jnp.bfloat16) == "cudnn"
    assert choose("gpu", 128, 256, jnp.bfloat16) == "xla"
    assert choose("tpu", 1024, 64, jnp.bfloat16) == "splash"
    assert choose("tpu", 1000, 64, jnp.bfloat16) == "xla"


def test_wrong_platform_or_shape_is_refused():
    inputs = random_inputs(1, 100, 2, 2, 8)
    with pytest.raises(ConfigError, match="needs a gpu, not a cpu; use 'auto'"):
        attention(*inputs, "cudnn")
    with pytest.raises(ConfigError, match="needs a tpu"):
        check_platform("splash", "gpu")
    with pytest.raises(ConfigError, match="no multiple of 128"):
        attention(*inputs, "splash")
    for implementation in ("auto", "xla", "reference"):
        check_platform(implementation, "cpu")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention runs on NVIDIA GPUs only")
def test_cudnn_equals_reference_with_gradients():
    inputs = random_inputs(2, 128, 4, 2, 64, jnp.bfloat16)
    assert_same_with_gradients(cudnn, reference, inputs, 0.05)
    assert_same_with_gradients(xla, reference, inputs, 0.05)
