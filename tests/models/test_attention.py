"""Every attention against the reference, and the reference against loops in numpy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lacy_jax.errors import ConfigError
from lacy_jax.models import Mask, attention
from lacy_jax.models.attention import _splash, check_platform, choose, splash_block
from lacy_jax.models.context_parallel import _branch, _routes

pytestmark = pytest.mark.oldest

jitted = jax.jit(attention, static_argnums=4)
WINDOWS = (0, 1, 7, 100, 1000)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(fn, q, k, v, mask, cotangent):
    """Output and the gradients with respect to q, k and v."""
    out, pull = jax.vjp(lambda q, k, v: fn(q, k, v, mask), q, k, v)
    return out, *pull(cotangent)


def assert_same_with_gradients(fn, other, inputs, atol, seed=1):
    cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=inputs[0].shape), inputs[0].dtype)
    for got, want in zip(with_gradients(fn, *inputs, cotangent), with_gradients(other, *inputs, cotangent)):
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=atol)


xla, reference, cudnn = (
    functools.partial(attention, implementation=n) for n in ("xla", "reference", "cudnn")
)


def random_inputs(batch, length, heads, groups, width, dtype=jnp.float32, seed=0, window=0):
    random = np.random.default_rng(seed)
    q = jnp.asarray(random.normal(size=(batch, length, heads, width)), dtype)
    k, v = (jnp.asarray(random.normal(size=(batch, length, groups, width)), dtype) for _ in range(2))
    cuts = np.sort(random.integers(1, 4, (batch, length)), axis=1)
    cuts[0, -length // 5 :] = 0  # the tail of the first row is padding
    return q, k, v, Mask(jnp.asarray(cuts, jnp.int32), window)


def loops(q, k, v, mask):
    """The definition, one query at a time, in float64."""
    q, k, v, segment_ids = (np.asarray(x, np.float64) for x in (q, k, v, mask.segments))
    window = mask.window or len(q[0])
    out = np.zeros_like(q)
    repeat = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = [j for j in range(max(0, i + 1 - window), i + 1) if segment_ids[b, j] == segment_ids[b, i]]
        scores = np.array([q[b, i, h] @ k[b, j, h // repeat] for j in keys]) / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = sum(w * v[b, j, h // repeat] for w, j in zip(weights / weights.sum(), keys))
    return out


@pytest.mark.parametrize("window", [0, 1, 4, 13, 50])
def test_reference_is_the_definition(window):
    inputs = random_inputs(2, 13, 4, 2, 6, window=window)
    np.testing.assert_allclose(jitted(*inputs, "reference"), loops(*inputs), atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(2, 13, 4, 2, 6), (1, 150, 4, 1, 16), (2, 300, 2, 2, 8)])
def test_xla_equals_reference_with_gradients(shape, window):
    assert_same_with_gradients(xla, reference, random_inputs(*shape, window=window), 2e-5)


def test_xla_in_bfloat16_equals_reference_with_gradients():
    inputs = random_inputs(2, 150, 4, 2, 16, dtype=jnp.bfloat16)
    assert_same_with_gradients(xla, reference, inputs, 0.06)


def test_xla_keeps_no_scores_for_the_backward_pass():
    """But one number per query, beside its inputs and its output."""
    q, k, v, mask = random_inputs(1, 256, 4, 2, 16)
    _, kept = jax.eval_shape(lambda q, k, v: jax.vjp(lambda *a: xla(*a, mask), q, k, v), q, k, v)
    sizes = [x.size for x in jax.tree.leaves(kept)]
    assert sum(sizes) <= 2 * q.size + k.size + v.size + q.size // 16 + mask.segments.size, sizes


@pytest.mark.parametrize("window", [0, 20])
def test_xla_agrees_with_jax_nn(window):
    q, k, v, mask = random_inputs(2, 96, 4, 2, 16, window=window)
    own = mask.segments[:, :, None] == mask.segments[:, None, :]
    window = (window - 1, 0) if window else None
    want = jax.nn.dot_product_attention(
        q, k, v, mask=own[:, None], is_causal=True, local_window_size=window, implementation="xla"
    )
    np.testing.assert_allclose(jitted(q, k, v, mask, "xla"), want, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_part_of_a_mask_reaches_all_that_its_queries_see(window):
    """Whatever is cut, and cut again: the rows of the whole mask, without the columns that nobody sees."""
    length = 700
    whole = random_inputs(1, length, 1, 1, 1, window=window)[3]
    seen = np.asarray(whole.array(length, length))[0, 0]
    for first, last in ((0, length), (0, 50), (130, 300), (300, 301), (512, 700)):
        part, keys = whole.part(first, last)
        got = np.zeros((last - first, length), bool)
        got[:, keys] = part.array(last - first, keys.stop - keys.start)[0, 0]
        np.testing.assert_array_equal(got, seen[first:last])
        again, inner = part.part(20, last - first) if last - first > 20 else (part, slice(0, None))
        if again is not part:
            got = np.zeros((last - first - 20, length), bool)
            got[:, keys.start + inner.start : keys.start + inner.stop] = again.array(
                last - first - 20, inner.stop - inner.start
            )[0, 0]
            np.testing.assert_array_equal(got, seen[first + 20 : last])
        if window:
            assert keys.stop - keys.start < (last - first) + window + 128


def test_splash_masks_say_what_the_rule_says():
    for window in WINDOWS:
        for start in (0, 128, 384):
            mask = Mask(window=window, start=start)
            got = mask.splash(128, start + 128)[:, :]
            np.testing.assert_array_equal(got, mask.array(128, start + 128)[0, 0])


def test_a_window_leaves_keys_out_of_the_products():
    """What `xla` is for: the products of 1,024 queries with a window of 64 are a fifth of those without."""

    def flops(window):
        inputs = random_inputs(1, 1024, 1, 1, 64, window=window)
        return jax.jit(xla).lower(*inputs).compile().cost_analysis()["flops"]

    assert flops(64) < 0.6 * flops(0)


def test_large_scores_stay_finite():
    q, k, v, mask = random_inputs(1, 70, 2, 2, 8)
    for fn in (xla, reference):
        for value in with_gradients(fn, q * 1e4, k, v, mask, jnp.ones_like(q)):
            assert np.isfinite(value).all()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_bfloat16_keeps_softmax_in_float32(implementation):
    q, k, v, mask = random_inputs(1, 80, 2, 1, 32, jnp.bfloat16)
    got = jitted(q, k, v, mask, implementation)
    assert got.dtype == jnp.bfloat16
    want = loops(*(x.astype(jnp.float32) for x in (q, k, v)), mask)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


@pytest.mark.parametrize(
    ("length", "window", "block"),
    [(128, 0, 512), (256, 100, 128), (384, 0, 512), (512, 0, 256), (512, 200, 512), (1280, 0, 128)],
)
def test_splash_equals_reference_with_gradients(length, window, block):
    """One block and several, lengths that the largest block does not divide, and too many blocks for the fused gradient."""

    def interpreted(q, k, v, mask):
        return _splash(q, k, v, mask, block, interpret=True)

    inputs = random_inputs(2, length, 2, 1, 64, window=window)
    assert_same_with_gradients(interpreted, reference, inputs, 2e-5)


def test_a_block_follows_the_length():
    found = {length: splash_block(length, 512) for length in (128, 256, 384, 512, 640, 1024, 1536, 65_536)}
    assert found == {128: 128, 256: 256, 384: 128, 512: 512, 640: 128, 1024: 512, 1536: 512, 65_536: 512}
    assert splash_block(1024, 1024) == 1024
    assert splash_block(1024, 128) == 128


@pytest.mark.parametrize("window", [0, 100])
def test_splash_lowers_for_tpu_with_its_backward_kernels(window):
    q, k, v, mask = random_inputs(1, 256, 4, 2, 64, jnp.bfloat16, window=window)
    gradient = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, mask, "splash").astype(jnp.float32).sum()))
    lowered = jax.export.export(gradient, platforms=["tpu"])(q, k, v)
    assert lowered.mlir_module().count("tpu_custom_call") >= 2


class MeshPartition:
    """A minimal `Partition`, as training would give one."""

    def __init__(self, mesh):
        self.mesh = mesh

    AXES = {"batch": "data", "sequence": "sequence", "heads": "tensor", "kv_heads": "tensor"}  # noqa: RUF012

    def _spec(self, axes):
        return jax.P(*(self.mesh_axis(axis) for axis in axes))

    def parts(self, axis):
        return self.mesh.shape.get(self.mesh_axis(axis), 1)

    def mesh_axis(self, axis):
        name = self.AXES.get(axis)
        return name if name in self.mesh.shape else None

    def constrain(self, x, axes):
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self._spec(axes)))

    def per_shard(self, fn, in_axes, out_axes):
        specs = tuple(self._spec(axes) for axes in in_axes)
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=specs, out_specs=self._spec(out_axes), check_vma=False
        )


def test_splash_runs_on_each_device_alone_under_a_partition():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    q, k, v, mask = random_inputs(4, 128, 4, 2, 64, jnp.bfloat16)
    fn = jax.jit(lambda q, k, v: attention(q, k, v, mask, "splash", MeshPartition(mesh)))
    text = jax.export.export(fn, platforms=["tpu"])(q, k, v).mlir_module()
    kernel = next(line for line in text.splitlines() if "tpu_custom_call" in line)
    assert "tensor<2x128x64xbf16>" in kernel, "one row and two of the four heads per device"


def on_parts(implementation, **sizes):
    """`implementation` on rows cut over 8 simulated devices or less."""
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes)
    )
    return functools.partial(attention, implementation=implementation, partition=MeshPartition(mesh))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize(
    ("sizes", "shape", "window"),
    [
        ({"sequence": 2}, (2, 28, 4, 2, 8), 0),
        ({"sequence": 3}, (1, 150, 2, 1, 8), 0),
        ({"sequence": 8}, (1, 160, 2, 2, 8), 0),
        ({"data": 2, "sequence": 2, "tensor": 2}, (2, 512, 4, 2, 8), 0),
        ({"sequence": 2, "tensor": 4}, (1, 32, 4, 2, 8), 0),  # Fewer key heads than parts.
        ({"sequence": 2}, (2, 28, 4, 2, 8), 9),  # Across the border of two parts.
        (
            {"data": 2, "sequence": 4},
            (2, 1024, 2, 1, 8),
            200,
        ),  # Keys of some parts are out of reach of others.
    ],
)
def test_rows_on_several_devices_equal_reference_with_gradients(implementation, sizes, shape, window):
    """Segments and padding lie across the borders of the parts."""
    inputs = random_inputs(*shape, window=window)
    assert_same_with_gradients(on_parts(implementation, **sizes), reference, inputs, 2e-5)


def test_devices_that_share_a_row_have_equal_work():
    """Of 2 S blocks a device takes one from either end: each place sees 2 S + 1 blocks of keys."""
    for devices in (1, 2, 3, 4, 7, 8):
        seen = []

        def attend(q, k, v, mask):
            assert k.shape[1] == mask.start + q.shape[1]
            seen.append(k.shape[1] // q.shape[1])  # noqa: B023
            return q

        one, whole = np.zeros((1, 1, 1, 1)), np.zeros((1, 2 * devices, 1, 1))
        for place in range(devices):
            _branch(attend, devices, place)(one, one, whole, whole, Mask(whole[:, :, 0, 0]))
        assert sorted(seen) == list(range(1, 2 * devices + 1))
        assert {a + b for a, b in zip(seen[::2], seen[1::2])} == {2 * devices + 1}
        for half in (0, 1):
            assert sorted(there for _, there in _routes(devices, half)) == list(range(devices))


def test_a_row_on_several_devices_keeps_no_scores_for_the_backward_pass():
    """What waits for it is what went in: no [T, T] array, nor one of every branch."""
    inputs = random_inputs(1, 256, 2, 2, 8)
    fn = on_parts("xla", sequence=4)
    _, kept = jax.eval_shape(lambda q, k, v: jax.vjp(lambda *a: fn(*a, inputs[3]), q, k, v), *inputs[:3])
    sizes = [x.size for x in jax.tree.leaves(kept)]
    assert sizes
    assert max(sizes) <= 4 * inputs[0].size, "keys of the whole row on each of 4 devices, and no scores"


@pytest.mark.parametrize(("window", "reached", "blocks"), [(0, 1024, 8), (200, 384, 3)])
def test_splash_on_parts_of_rows_lowers_for_tpu(window, reached, blocks):
    q, k, v, mask = random_inputs(1, 1024, 4, 2, 64, jnp.bfloat16, window=window)
    fn = on_parts("splash", sequence=4, tensor=2)
    gradient = jax.jit(
        jax.grad(lambda q, k, v: fn(q, k, v, mask).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    )
    text = jax.export.export(gradient, platforms=["tpu"])(q, k, v).mlir_module()
    kernels = [line for line in text.splitlines() if "tpu_custom_call" in line]
    # Under a window all blocks but those at the start of the row see alike, and share what they are lowered to.
    assert len(kernels) >= 2 * blocks, "forward and backward, for each block that differs"
    assert any("tensor<2x128x64xbf16>" in line and f"tensor<1x{reached}x64xbf16>" in line for line in kernels)
    assert window == 0 or not any("tensor<1x1024x64xbf16>" in line for line in kernels)
    with pytest.raises(
        ConfigError, match=r"rows of 64 tokens \(half a device's part if config.mesh.sequence"
    ):
        fn(*random_inputs(1, 512, 4, 2, 64, jnp.bfloat16))


def test_auto_by_platform():
    assert choose("cpu", 128, 64, jnp.float32) == "xla"
    assert choose("gpu", 128, 64, jnp.float32) == "xla"
    assert choose("gpu", 128, 64, jnp.bfloat16) == "cudnn"
    assert choose("gpu", 128, 256, jnp.bfloat16) == "xla"
    assert choose("tpu", 1024, 64, jnp.bfloat16) == "splash"
    assert choose("tpu", 1000, 64, jnp.bfloat16) == "xla"
    assert choose("tpu", 1024, 64, jnp.bfloat16, parts=4) == "splash"
    assert choose("tpu", 1024, 64, jnp.bfloat16, parts=8) == "xla"


def test_wrong_platform_or_shape_is_refused():
    inputs = random_inputs(1, 100, 2, 2, 8)
    with pytest.raises(ConfigError, match="needs a gpu, not a cpu; use 'auto'"):
        attention(*inputs, "cudnn")
    with pytest.raises(ConfigError, match="needs a tpu"):
        check_platform("splash", "gpu")
    with pytest.raises(ConfigError, match="not a multiple of 128"):
        attention(*inputs, "splash")
    for implementation in ("auto", "xla", "reference"):
        check_platform(implementation, "cpu")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN attention runs on NVIDIA GPUs only")
def test_cudnn_equals_reference_with_gradients():
    for window in (0, 50):
        inputs = random_inputs(2, 128, 4, 2, 64, jnp.bfloat16, window=window)
        assert_same_with_gradients(cudnn, reference, inputs, 0.05)
        assert_same_with_gradients(xla, reference, inputs, 0.05)
