"""The same global batch gives the same mask and loss on any mesh, and only small things cross devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from lacy_jax.objectives import POLICIES, delegated_cross_entropy, delegation_mask, linear_statistics

pytestmark = pytest.mark.oldest

# Tests compile far longer than they run.
QUICK = {"xla_backend_optimization_level": 0}
AXES = ("data", "fsdp", "sequence", "tensor")
COLLECTIVE = r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def make_mesh(*sizes: int) -> jax.sharding.Mesh:
    devices = jax.devices()
    if len(devices) < np.prod(sizes):
        pytest.skip("needs 8 simulated devices (XLA_FLAGS is set in conftest.py)")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4, devices=devices[: np.prod(sizes)])


def make_signals(seed=0, shape=(8, 48)):
    r = np.random.default_rng(seed)
    return {
        "nll": np.round(r.exponential(2.0, shape), 1).astype(np.float32),
        "weights": r.random(shape) < 0.85,
        "labels": {
            "factual": r.random(shape) < 0.3,
            "nongrammatical": r.random(shape) < 0.25,
            "judge": r.random(shape) < 0.15,
            "reference_nll": np.round(r.exponential(2.0, shape), 1).astype(np.float32),
        },
        "gap": r.exponential(1.0, shape).astype(np.float32),
    }


def while_bodies(hlo: str) -> str:
    """Text of every computation that a while loop of the module runs, directly or through calls."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", hlo, re.S | re.M))
    pending, seen = re.findall(r"body=%?([\w.\-]+)", hlo), set()
    while pending:
        name = pending.pop()
        if name in computations and name not in seen:
            seen.add(name)
            pending += re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", computations[name])
    return "\n".join(computations[name] for name in seen)


@pytest.mark.parametrize("policy", POLICIES)
def test_mask_does_not_depend_on_the_layout(policy):
    signals = make_signals()

    def f(signals):
        return delegation_mask(policy, call_rate=0.15, ignore_rate=0.25, rng=jax.random.key(4), **signals)

    want = jax.device_get(jax.jit(f)(signals))
    layouts = [((2, 2, 1, 1), jax.P(("data", "fsdp"))), ((2, 1, 4, 1), jax.P("data", "sequence"))]
    if policy in ("lacy", "loss"):
        layouts += [((8, 1, 1, 1), jax.P("data"))]
    for sizes, spec in layouts:
        sharding = NamedSharding(make_mesh(*sizes), spec)
        compiled = jax.jit(f).lower(jax.device_put(signals, sharding)).compile(QUICK)
        got = jax.device_get(compiled(jax.device_put(signals, sharding)))
        # Masks are exact; the soft shares of `idk` come from exp, whose last bit depends on vectorisation.
        equal = functools.partial(np.testing.assert_allclose, rtol=1e-6 if POLICIES[policy].soft else 0)
        jax.tree.map(equal, got, want)
        # Nothing but counts crosses devices: no gather at all, and no reduction of more than 16 numbers.
        hlo = compiled.as_text()
        assert not re.search(r"\b(all-gather|all-to-all|collective-permute)", hlo)
        for shape in re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce", hlo):
            assert np.prod([int(n) for n in shape.split(",") if n]) <= 16


def loss_inputs(seed=0, shape=(8, 24), d=16, v=64):
    r = np.random.default_rng(seed)
    model = (r.normal(size=(*shape, d)), r.normal(size=(v, d)) * 0.4, r.normal(size=d))
    tokens = (r.integers(0, v, shape), r.random(shape) < 0.9, {"factual": r.random(shape) < 0.3})
    return tuple(x.astype(np.float32) for x in model), tokens


def loss_step(hidden, kernel, call_vector, *tokens, tied=True, **logits):
    def f(*model):
        return delegated_cross_entropy(
            *model, *tokens, policy="lacy", call_rate=0.15, z_loss=0.01, tied=tied, **logits or {"chunk": 24}
        )

    return jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(hidden, kernel, call_vector)


@functools.lru_cache
def on_one_device():
    model, tokens = loss_inputs()
    return jax.device_get(jax.jit(loss_step, compiler_options=QUICK)(*model, *tokens))


@pytest.mark.parametrize(
    ("sizes", "kernel_spec", "logits"),
    [
        ((8, 1, 1, 1), jax.P(), {}),
        ((1, 2, 1, 1), jax.P(None, "fsdp"), {}),
        ((2, 2, 1, 2), jax.P("tensor", "fsdp"), {}),
        ((2, 2, 1, 2), jax.P("tensor", "fsdp"), {"keep": 1 << 20}),
        ((1, 1, 1, 2), jax.P("tensor"), {}),
        ((1, 1, 4, 1), jax.P(), {}),
        ((1, 2, 2, 2), jax.P("tensor", "fsdp"), {}),
        ((1, 2, 2, 2), jax.P("tensor", "fsdp"), {"keep": 1 << 20}),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes, kernel_spec, logits, tied):
    if not tied and sizes[1] == 1:
        pytest.skip("nothing is scattered: the program is that of a tied head")
    (model, tokens), want = loss_inputs(), on_one_device()
    mesh = make_mesh(*sizes)
    batch = NamedSharding(mesh, jax.P(("data", "fsdp"), "sequence"))
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(model[0], batch),
            jax.device_put(model[1], NamedSharding(mesh, kernel_spec)),
            jax.device_put(model[2], NamedSharding(mesh, jax.P())),
            *jax.device_put(tokens, batch),
        )
        step = functools.partial(loss_step, tied=tied, **logits)
        got = jax.device_get(jax.jit(step, compiler_options=QUICK)(*placed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    assert got[0][1].n_called == want[0][1].n_called


def test_batch_that_the_mesh_does_not_divide_still_works():
    model, tokens = loss_inputs(shape=(3, 10))

    def f(*inputs):
        return delegated_cross_entropy(*inputs, policy="lacy", call_rate=0.15)[0]

    want = jax.jit(f, compiler_options=QUICK)(*model, *tokens)
    with jax.set_mesh(make_mesh(2, 1, 1, 1)):
        got = jax.jit(f, compiler_options=QUICK)(*model, *tokens)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_collective_inside_the_chunk_loop():
    """The kernel is gathered before the loop and its gradient reduced after it, never once per chunk."""
    model, tokens = loss_inputs()
    mesh = make_mesh(2, 4, 1, 1)
    batch = NamedSharding(mesh, jax.P(("data", "fsdp")))

    def f(hidden, kernel, targets):
        lse, z_target, _ = linear_statistics(hidden, kernel, targets, chunk=6)
        return jnp.mean(lse - z_target)

    with jax.set_mesh(mesh):
        args = (
            jax.device_put(model[0], batch),
            jax.device_put(model[1], NamedSharding(mesh, jax.P(None, "fsdp"))),
            jax.device_put(tokens[0], batch),
        )
        hlo = jax.jit(jax.grad(f, argnums=(0, 1))).lower(*args).compile().as_text()
    bodies = while_bodies(hlo)
    assert re.search(r"\b(dot|custom-call)\(", bodies), "the chunk loop is not where this test looks"
    assert not re.search(COLLECTIVE, bodies)
    assert re.search(COLLECTIVE, hlo)


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (1, 8, 1, 1), (1, 4, 2, 1)])
def test_no_device_sums_more_of_the_kernels_gradient_than_it_keeps_but_for_the_scatter(sizes):
    """Whole, the gradient of a head of its own is the largest array of a step: it is scattered, then reduced over other axes."""
    model, tokens = loss_inputs()
    mesh = make_mesh(*sizes)
    batch = NamedSharding(mesh, jax.P(("data", "fsdp"), "sequence"))
    split = NamedSharding(mesh, jax.P(None, "fsdp"))

    def f(hidden, kernel, targets):
        lse, z_target, _ = linear_statistics(hidden, kernel, targets, chunk=6, tied=False)
        return jnp.mean(lse - z_target)

    with jax.set_mesh(mesh):
        args = (
            jax.device_put(model[0], batch),
            jax.device_put(model[1], split),
            jax.device_put(tokens[0], batch),
        )
        gradient = jax.jit(
            jax.grad(f, argnums=1),
            out_shardings=split,
            compiler_options={"xla_backend_optimization_level": 0},
        )
        hlo = gradient.lower(*args).compile().as_text()
    reduced = [
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for shape in re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce(?:-start)?\(", hlo)
    ]
    assert max(reduced, default=0) <= model[1].size // sizes[1]
    assert re.search(r"\breduce-scatter(?:-start)?\(", hlo)
