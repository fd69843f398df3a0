"""The model against an independent implementation, and what must not change its result."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from scipy.special import softmax

from lacy_jax.models import LOGICAL_AXES, ModelConfig, Transformer, count_params, logical_axes

pytestmark = pytest.mark.oldest

FAMILIES = ("gpt2", "llama")
SMALL = ModelConfig("gpt2", 61, 32, 3, 4, 2, 8, 48, 40)


forward = jax.jit(lambda model, *inputs: model(*inputs))
logits = jax.jit(lambda model, hidden: model.logits(hidden))


def small(family: str, **changes) -> ModelConfig:
    return dataclasses.replace(SMALL, family=family, **changes)


@functools.cache
def build(cfg: ModelConfig, seed: int = 0) -> Transformer:
    """A model with every parameter off its trivial start: norms near 1, all else normal of std 0.2."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(seed)

    def value(path, leaf):
        centre = 1.0 if any(name in jax.tree_util.keystr(path) for name in ("scale", "_norm")) else 0.0
        return (centre + 0.2 * random.normal(size=leaf.shape)).astype(np.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(value, abstract))


def packed(cfg: ModelConfig, batch: int = 2, length: int = 24, seed: int = 0):
    """Tokens, positions and segments of rows of two documents and a padded tail."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, cfg.vocab_size, (batch, length)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for b in range(batch):
        cut, end = 7 + 3 * b, length - 4
        positions[b, :cut], positions[b, cut:end] = np.arange(cut), np.arange(end - cut)
        segments[b, :cut], segments[b, cut:end] = 1, 2
    return tokens, positions, segments


def numpy_forward(model: Transformer, tokens, positions, segments):
    """The two families written down plainly, in float64, a row and a head at a time."""
    cfg = model.cfg
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    def norm(x, scale, bias=None):
        if cfg.family == "llama":
            return rms(x, scale)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + cfg.norm_eps
        ) * scale + bias

    def rms(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

    def scaled(frequencies):  # As the reference code of Llama 3.1 states it, by wavelength.
        if not cfg.rope_scaling:
            return frequencies
        if cfg.rope_scaling[0] == "linear":
            return frequencies / cfg.rope_scaling[1]
        _, factor, low, high, original = cfg.rope_scaling
        out = []
        for frequency in frequencies:
            wavelength = 2 * np.pi / frequency
            smooth = (original / wavelength - low) / (high - low)
            if wavelength < original / high:
                out.append(frequency)
            elif wavelength > original / low:
                out.append(frequency / factor)
            else:
                out.append((1 - smooth) * frequency / factor + smooth * frequency)
        return np.array(out)

    def rope(x, position):  # Complex rotation of the pairs (i, i + K/2).
        half = x.shape[-1] // 2
        turn = np.exp(1j * position[:, None] * scaled(cfg.rope_theta ** (-np.arange(half) / half)))
        z = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    out = []
    for row, position, segment in zip(tokens, positions, segments):
        x = p["embedding"][row]
        if cfg.family == "gpt2":
            x = x + p["position"][position]
        own = (segment[:, None] == segment[None]) & np.tri(len(row), dtype=bool)
        for i in range(cfg.n_layers):
            window = cfg.sliding_window[i % len(cfg.sliding_window)] if cfg.sliding_window else 0
            visible = own & ~np.tri(len(row), k=-window, dtype=bool) if window else own
            layer = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
            y, mixed = norm(x, **layer["attention_norm"]), 0.0
            for h in range(cfg.n_heads):
                g = h * cfg.n_kv_heads // cfg.n_heads
                q, k, v = y @ layer["query"][:, h], y @ layer["key"][:, g], y @ layer["value"][:, g]
                if "query_bias" in layer:
                    q, k, v = q + layer["query_bias"][h], k + layer["key_bias"][g], v + layer["value_bias"][g]
                if cfg.qk_norm:
                    q, k = rms(q, layer["query_norm"]), rms(k, layer["key_norm"])
                if cfg.family == "llama":
                    q, k = rope(q, position), rope(k, position)
                scores = np.where(visible, q @ k.T / np.sqrt(cfg.head_dim), -np.inf)
                mixed = mixed + softmax(scores, -1) @ v @ layer["attention_out"][h]
            x = x + mixed + layer.get("attention_out_bias", 0.0)
            y = norm(x, **layer["mlp_norm"])
            if cfg.family == "gpt2":
                u = y @ layer["mlp_in"] + layer["mlp_in_bias"]
                u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
                x = x + u @ layer["mlp_out"] + layer["mlp_out_bias"]
            else:
                gate = y @ layer["mlp_gate"] + layer.get("mlp_gate_bias", 0.0)
                inner = y @ layer["mlp_in"] + layer.get("mlp_in_bias", 0.0)
                x = (
                    x
                    + (gate / (1 + np.exp(-gate)) * inner) @ layer["mlp_out"]
                    + layer.get("mlp_out_bias", 0.0)
                )
        out.append(norm(x, **p["final_norm"]))
    hidden = np.stack(out)
    head = p["embedding"] if cfg.tie_head else p["head"]
    return hidden, hidden @ head.T, hidden @ p["call"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"tie_head": False, "qk_norm": True, "n_kv_heads": 4}])
def test_equals_plain_numpy(family, options):
    model = build(small(family, **options))
    inputs = packed(model.cfg)
    hidden = forward(model, *inputs)
    z, c = logits(model, hidden)
    for got, want in zip((hidden, z, c), numpy_forward(model, *inputs)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"rope_scaling": ("llama3", 8.0, 1.0, 4.0, 16), "head_dim": 12, "norm_eps": 1e-2},
        {"rope_scaling": ("linear", 3.0), "attention_bias": True, "mlp_bias": True},
        {"attention_bias": True, "attention_out_bias": False},
        {"sliding_window": (4,)},
        {"sliding_window": (3, 0), "n_layers": 5, "qk_norm": True},
    ],
)
def test_what_public_weights_need_equals_plain_numpy(options):
    model = build(small("llama", **options))
    inputs = packed(model.cfg)
    for got, want in zip(logits(model, forward(model, *inputs)), numpy_forward(model, *inputs)[1:]):
        np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)
    held = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert held == count_params(model.cfg)


@jax.jit
def _loss_and_gradients(graph, parameters, inputs):
    def loss(parameters):
        return jnp.square(nnx.merge(graph, parameters)(*inputs).astype(jnp.float32)[:, :, :5]).mean()

    return jax.value_and_grad(loss)(parameters)


def loss_and_gradients(model: Transformer, cfg: ModelConfig, inputs) -> list:
    """A loss and its gradients by the parameters of `model`, computed as `cfg` says."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    return jax.tree.leaves(_loss_and_gradients(graph, nnx.state(model, nnx.Param), inputs))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"remat": "full", "scan_layers": False}),
        ("gpt2", {"remat": "dots"}),
        ("llama", {"scan_layers": False, "attention": "reference"}),
        ("llama", {"remat": "full"}),
        ("llama", {"remat": "full", "sliding_window": (5, 0)}),  # One loop of a cycle, and a layer after it.
        ("gpt2", {"scan_layers": False, "sliding_window": (0, 5), "remat": "dots"}),
        ("llama", {"attention": "reference", "sliding_window": (5, 3, 0)}),
    ],
)
def test_scan_and_remat_change_nothing(family, changes):
    windows = changes.get("sliding_window", ())
    model = build(small(family))
    inputs = packed(model.cfg)
    plain = small(
        family, sliding_window=windows * (3 // max(len(windows), 1)) + windows[: 3 % max(len(windows), 1)]
    )
    want = loss_and_gradients(model, plain, inputs)
    for got, expected in zip(loss_and_gradients(model, small(family, **changes), inputs), want):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max() + 1e-7, rtol=1e-4)


def test_a_loop_compiles_one_cycle_of_windows():
    """However many layers: what is written in the program is a layer for each window of the cycle."""

    def layers(**changes):
        cfg = small("llama", n_layers=12, **changes)
        graph, parameters = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
        inputs = packed(cfg)
        text = jax.jit(lambda p: nnx.merge(graph, p)(*inputs)).lower(parameters).as_text()
        return text.count("stablehlo.dot_general")

    one = layers()
    assert layers(sliding_window=(3, 3, 0)) == 3 * one
    assert layers(sliding_window=(3, 3, 3, 3, 0)) == (5 + 2) * one, "two of twelve are left over"


def test_remat_saves_memory():
    def temporary(remat):
        cfg = small("llama", remat=remat, n_layers=8)
        graph, parameters = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
        inputs = packed(cfg, batch=8, length=40)
        step = jax.jit(jax.grad(lambda p: nnx.merge(graph, p)(*inputs).var()))
        return step.lower(parameters).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporary, ("none", "dots", "full"))
    assert full < dots < none


def test_the_backward_pass_holds_no_second_copy_of_the_parameters():
    """Windows that differ cut the stacked parameters in cycles: a view, not a copy."""

    def temporary(windows):
        cfg = small("llama", remat="full", n_layers=8, d_model=128, d_ff=512, sliding_window=windows)
        graph, parameters = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
        inputs = packed(cfg, batch=1)
        step = jax.jit(jax.grad(lambda p: nnx.merge(graph, p)(*inputs).var()))
        held = sum(4 * x.size for x in jax.tree.leaves(parameters))
        return step.lower(parameters).compile().memory_analysis().temp_size_in_bytes, held

    one, held = temporary(())
    two, _ = temporary((5, 0))
    assert two < one + 0.5 * held


def relative_error(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(family):
    model = build(small(family))
    half = build(small(family, dtype="bfloat16"))
    inputs = packed(model.cfg)
    hidden = forward(half, *inputs)
    assert hidden.dtype == jnp.bfloat16
    assert 1e-4 < relative_error(hidden, forward(model, *inputs)) < 0.03
    assert [x.dtype for x in logits(half, hidden)] == [jnp.float32] * 2
    if family == "llama":
        gradients = loss_and_gradients(half, half.cfg, inputs)[1:]
        for got, want in zip(gradients, loss_and_gradients(model, model.cfg, inputs)[1:]):
            assert got.dtype == jnp.float32
            assert not want.any() or relative_error(got, want) < 0.1


def test_a_packed_document_is_as_if_alone():
    model = build(small("llama"))
    tokens, positions, segments = packed(model.cfg)
    hidden = forward(model, tokens, positions, segments)
    for segment in (1, 2):
        where = segments[1] == segment
        alone = forward(model, *(x[1, where][None] for x in (tokens, positions, np.ones_like(tokens))))
        np.testing.assert_allclose(hidden[1, where], alone[0], atol=2e-5)


def test_padding_is_finite_and_reaches_nobody():
    model = build(small("gpt2"))
    tokens, positions, segments = packed(model.cfg)
    segments[1] = 0  # a row of nothing but padding
    padding = segments == 0
    graph, parameters = nnx.split(model)

    def loss(parameters, tokens):
        hidden = nnx.merge(graph, parameters)(tokens, positions, segments)
        return jnp.sum(jnp.square(hidden) * ~padding[:, :, None]), hidden

    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, hidden = run(parameters, tokens)
    other_gradient, other = run(parameters, np.where(padding, 5, tokens).astype(np.int32))
    assert np.isfinite(hidden).all()
    np.testing.assert_array_equal(hidden[~padding], other[~padding])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient)):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_no_position_sees_the_future():
    model = build(small("llama"))
    tokens = packed(model.cfg)[0]
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (2, 24))
    ones = np.ones_like(tokens)
    changed = tokens.copy()
    changed[:, 10] = (changed[:, 10] + 1) % model.cfg.vocab_size
    a, b = (forward(model, x, positions, ones) for x in (tokens, changed))
    np.testing.assert_array_equal(a[:, :10], b[:, :10])
    assert (np.abs(a[:, 10:] - b[:, 10:]).max(-1) > 1e-6).all()


def test_dropout_needs_asking_and_a_key():
    model = build(small("gpt2", dropout=0.3))
    inputs = packed(model.cfg)
    plain = forward(build(small("gpt2")), *inputs)
    np.testing.assert_array_equal(forward(model, *inputs), plain)
    with pytest.raises(ValueError, match="rngs"):
        model(*inputs, deterministic=False)

    @jax.jit
    def dropped(model, seed):
        return model(*inputs, deterministic=False, rngs=nnx.Rngs(dropout=jax.random.key(seed)))

    first, again, other = (dropped(model, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - plain).max() > 0.1
    recomputed = build(small("gpt2", dropout=0.3, remat="full"))
    np.testing.assert_allclose(dropped(recomputed, 1), first, atol=1e-5)


def test_dropout_keeps_the_mean_and_drops_its_share():
    from lacy_jax.models.layers import dropout

    x = dropout(jnp.ones(20_000), 0.25, jax.random.key(0))
    assert abs(float((x == 0).mean()) - 0.25) < 0.02
    assert abs(float(x.mean()) - 1.0) < 0.02


WIDE = small("gpt2", d_model=128, n_heads=4, head_dim=32, n_layers=8, d_ff=256)
initialise = jax.jit(lambda cfg, key: Transformer(cfg, rngs=nnx.Rngs(key)), static_argnums=0)


def test_initialisation():
    model = initialise(WIDE, jax.random.key(3))
    std = {
        name: float(getattr(model.blocks, name)[...].std()) for name in ("query", "key", "value", "mlp_in")
    }
    std |= {"embedding": float(model.embedding[...].std()), "position": float(model.position[...].std())}
    for name, value in std.items():
        assert value == pytest.approx(0.02, rel=0.05), name
    for name in ("attention_out", "mlp_out"):
        value = float(getattr(model.blocks, name)[...].std())
        assert value == pytest.approx(0.02 / (2 * 8) ** 0.5, rel=0.05), name
    assert (model.blocks.mlp_norm.scale[...] == 1).all()
    assert not model.blocks.mlp_in_bias[...].any()
    z, c = logits(model, forward(model, *packed(model.cfg)))
    assert not c.any(), "CALL starts at the mean of the base logits"
    assert abs(float(z.mean())) < 0.3 * float(z.std())
    first, second = np.asarray(model.blocks.query[...][:2])
    assert not np.allclose(first, second), "layers must not start alike"


def test_seed_decides_the_parameters():
    a, b, c = (jax.tree.leaves(nnx.state(initialise(WIDE, jax.random.key(seed)))) for seed in (3, 3, 4))
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b))
    assert any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(a, c))


def test_heads():
    tied, untied = build(small("gpt2")), build(small("gpt2", tie_head=False))
    np.testing.assert_array_equal(tied.head_kernel(), tied.embedding[...])
    assert untied.head_kernel().shape == (61, 32)
    assert not np.allclose(untied.head_kernel(), untied.embedding[...])
    assert tied.call_vector().shape == (32,)
    assert {tied.head_kernel().dtype, tied.call_vector().dtype} == {jnp.dtype("float32")}


@pytest.mark.parametrize("family", FAMILIES)
def test_logical_axes_fit_every_parameter_without_a_mesh(family):
    cfg = small(family, tie_head=False, qk_norm=True)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))), nnx.Param)
    axes = logical_axes(abstract)
    flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract)]
    assert [len(a) for a in flat] == [len(s) for s in shapes]
    sizes = {
        "vocab": 61,
        "embed": 32,
        "feature": 32,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp": 48,
    }
    sizes["position"] = 40
    for names, shape in zip(flat, shapes):
        assert tuple(sizes[name] for name in names) == shape
        assert set(names) <= set(LOGICAL_AXES)
    structure = jax.tree.structure(jax.tree.map(len, axes, is_leaf=lambda x: isinstance(x, tuple)))
    assert structure == jax.tree.structure(abstract)
    assert nnx.merge(graph, abstract).cfg == cfg


def test_sharded_forward_equals_unsharded():
    devices = jax.devices()[:4]
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=auto, devices=devices)
    rules = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
    model = build(small("llama"))
    shardings = jax.tree.map(
        lambda axes: NamedSharding(mesh, jax.P(*(rules.get(a) for a in axes))),
        logical_axes(model),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    graph, parameters = nnx.split(model)
    sharded = nnx.merge(graph, jax.device_put(parameters, shardings))
    assert sharded.blocks.query[...].addressable_shards[0].data.shape == (3, 16, 2, 8)
    inputs = packed(model.cfg)
    np.testing.assert_allclose(forward(sharded, *inputs), forward(model, *inputs), atol=2e-5)
