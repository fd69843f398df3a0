"""Muon and AdEMAMix: against the published formulas written out, on meshes, in runs that stop and go on."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax.errors import ConfigError
from lacy_jax.training import sharding, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.muon import matrix_axes
from lacy_jax.training.optimizer import make_optimizer
from lacy_jax.training.signals import StopRequest
from lacy_jax.training.state import (
    ModelDefinition,
    abstract_state,
    init_state,
    optimizer_for,
    state_shardings,
)
from lacy_jax.training.step import make_train_step

HIDDEN = {"query", "key", "value", "attention_out", "mlp_in", "mlp_out"}
PLAIN = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 0, "optimizer__clip_norm": 0.0}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_muon_has_the_matrices_of_the_layers_and_nothing_else(family):
    config = small.make_config("", model__family=family, model__qk_norm=True, model__tie_head=False)
    axes = ModelDefinition(small.model_config(config)).axes
    blocks = {name for name, own in axes["blocks"].items() if isinstance(own, tuple) and matrix_axes(own)}
    assert blocks == HIDDEN | ({"mlp_gate"} if family == "llama" else set())
    rest = [leaf for name, part in axes.items() if name != "blocks" for leaf in _axes(part)]
    assert len(rest) >= 4
    assert not any(matrix_axes(own) for own in rest)
    assert matrix_axes(axes["blocks"]["query"]) == ((1,), (2, 3))
    assert matrix_axes(axes["blocks"]["attention_out"]) == ((1, 2), (3,))


def _axes(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple))


def _orthogonal(m: np.ndarray) -> np.ndarray:
    """Five quintic Newton-Schulz steps (github.com/KellerJordan/Muon)."""
    tall = m.shape[0] > m.shape[1]
    x = m.T if tall else m
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


@pytest.mark.parametrize("update_rms", [0.2, 0.0])
def test_two_updates_equal_muon_written_out_layer_by_layer(update_rms):
    config = small.make_config("", optimizer__name="muon", optimizer__update_rms=update_rms, **PLAIN)
    c, rng = config.optimizer, np.random.default_rng(0)
    axes = {
        "q": ("layers", "embed", "heads", "head_dim"),
        "o": ("layers", "heads", "head_dim", "embed"),
        "up": ("layers", "embed", "mlp"),
        "table": ("vocab", "embed"),
        "call": ("feature",),
    }
    shapes = {"q": (3, 6, 2, 4), "o": (3, 2, 4, 6), "up": (3, 6, 12), "table": (9, 6), "call": (6,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    flat = {"q": (6, 8), "o": (8, 6), "up": (6, 12)}  # Inputs, outputs.
    tx = make_optimizer(config, axes)
    found = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    state = tx.init(found)
    m, v = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    for t in (1, 2):
        grads = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        updates, state = tx.update({n: jnp.asarray(g, jnp.float32) for n, g in grads.items()}, state, found)
        found = {name: found[name] + updates[name] for name in found}
        for name, g in grads.items():
            beta = c.momentum if name in flat else c.b1
            m[name] = beta * m[name] + (1 - beta) * g
            v[name] = c.b2 * v[name] + (1 - c.b2) * g**2
            if name in flat:
                ahead = beta * m[name] / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
                inputs, outputs = flat[name]
                scale = (
                    update_rms * max(inputs, outputs) ** 0.5
                    if update_rms
                    else max(1, outputs / inputs) ** 0.5
                )
                layers = [scale * _orthogonal(layer.reshape(inputs, outputs)) for layer in ahead]
                update = np.stack(layers).reshape(shapes[name])
            else:
                update = (m[name] / (1 - c.b1**t)) / (np.sqrt(v[name] / (1 - c.b2**t)) + c.eps)
            decay = 0.0 if name == "call" else c.weight_decay * params[name]
            params[name] = params[name] - c.learning_rate * (update + decay)
            np.testing.assert_allclose(np.asarray(found[name]), params[name], atol=2e-6)


def test_an_entry_moves_as_far_as_with_adamw():
    """What `update_rms` = 0.2 is for: of a square and of a wide matrix, learning rate 1."""
    rng = np.random.default_rng(1)
    axes = {"square": ("layers", "embed", "mlp"), "wide": ("layers", "embed", "mlp")}
    params = {"square": jnp.ones((2, 64, 64)), "wide": jnp.ones((2, 64, 256))}
    grads = {name: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for name, p in params.items()}
    config = small.make_config("", optimizer__name="muon", optimizer__weight_decay=0.0, **PLAIN)
    tx = make_optimizer(config, axes)
    updates, _ = tx.update(grads, tx.init(params), params)
    for update in updates.values():
        rms = float(jnp.sqrt(jnp.mean(update**2))) / config.optimizer.learning_rate
        assert 0.14 < rms < 0.24  # Singular values lie between 0.7 and 1.2 after five steps.


def test_updates_equal_ademamix_written_out():
    """arXiv:2409.03137, algorithm 1, with the schedulers of alpha and beta_3 over the run."""
    config = small.make_config("", optimizer__name="ademamix", train__steps=4, **PLAIN)
    c, rng = config.optimizer, np.random.default_rng(2)
    param = rng.normal(size=5)
    tx = make_optimizer(config, {"b": ("feature",)})
    found = {"b": jnp.asarray(param, jnp.float32)}
    state = tx.init(found)
    fast, slow, second = np.zeros(5), np.zeros(5), np.zeros(5)
    for t in range(1, 5):
        g = rng.normal(size=5)
        updates, state = tx.update({"b": jnp.asarray(g, jnp.float32)}, state, found)
        found = {"b": found["b"] + updates["b"]}
        share = (t - 1) / 4
        start, end = np.log(c.b1), np.log(c.slow_b)
        b3 = np.exp(start * end / ((1 - share) * end + share * start))
        fast, slow, second = c.b1 * fast + (1 - c.b1) * g, b3 * slow + (1 - b3) * g, c.b2 * second + (1 - c.b2) * g**2  # fmt: skip
        top = fast / (1 - c.b1**t) + share * c.slow_share * slow
        param = param - c.learning_rate * top / (np.sqrt(second / (1 - c.b2**t)) + c.eps)
        np.testing.assert_allclose(np.asarray(found["b"]), param, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("muon", "momentum", 1.0), ("muon", "update_rms", -0.1), ("ademamix", "slow_b", 0.5),
        ("ademamix", "slow_b", 1.0), ("ademamix", "slow_share", -1.0),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(name, field, value):
    config = small.make_config("", **{"optimizer__name": name, f"optimizer__{field}": value})
    with pytest.raises(ConfigError, match=f"^config.optimizer.{field} = {value}: must"):
        make_optimizer(config, ModelDefinition(small.model_config(config)).axes)


def _mesh(data: int, fsdp: int, tensor: int):
    config = small.make_config("", mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
    return sharding.make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])


@pytest.mark.parametrize(
    ("name", "sizes"), [("muon", (4, 2, 1)), ("muon", (2, 2, 2)), ("ademamix", (2, 2, 2))]
)
def test_eight_devices_step_as_one(name, sizes):
    """Two layers: with fsdp = 2 each device orthogonalises the matrices of one."""
    config = small.make_config("", optimizer__name=name, train__accumulation=1)
    batch = small.random_batch(rows=8)
    (one, _), (many, _) = (small.run_step(config, _mesh(*s), batch, steps=3) for s in ((1, 1, 1), sizes))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4)
    moments = many.opt_state[1].inner_states["muon"].inner_state[1].mu if name == "muon" else many.opt_state[1].m2  # fmt: skip
    kept = jax.tree.leaves_with_path(moments)
    assert len(kept) == (7 if name == "muon" else len(jax.tree.leaves(many.params)))
    where = dict(jax.tree.leaves_with_path(many.params))
    assert all(moment.sharding == where[path].sharding for path, moment in kept)


def test_matrices_are_exchanged_once_and_not_in_every_product():
    """Where fsdp divides the layers: what AdamW gathers, and all-to-all of whole matrices before and after."""

    def collectives(name: str) -> list[str]:
        config = small.make_config("", optimizer__name=name, model__n_layers=4, train__accumulation=1)
        model, mesh = ModelDefinition(small.model_config(config)), _mesh(1, 4, 1)
        tx = make_optimizer(config, model.axes)
        step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
        with jax.set_mesh(mesh):
            batch = sharding.put_batch(small.random_batch(8), mesh)
            text = step.lower(abstract_state(model, tx, mesh), batch, None).compile().as_text()
        return re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute)\(", text)

    adamw, muon = collectives("adamw"), collectives("muon")
    assert [kind for kind in muon if kind != "all-to-all"] == adamw
    assert (
        0 < muon.count("all-to-all") - adamw.count("all-to-all") <= 4 * 7
    )  # Gradient, momentum in and out, update.


@pytest.mark.parametrize("name", ["muon", "ademamix"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(name, tmp_path, monkeypatch):
    """Accumulation, frozen parameters, shares of the rate and the moving average, all at once."""
    dataset = small.write_dataset(tmp_path / "data")
    config = small.make_config(
        dataset, optimizer__name=name, optimizer__ema_decay=0.5, optimizer__lr_scale=(("blocks.*", 0.5),),
        train__accumulation=2, train__trainable=("call", "final_norm.*", "blocks.-1.*"), train__steps=8, train__eval_every=0,
    )  # fmt: skip
    one = _mesh(1, 1, 1)
    train(config, tmp_path / "whole", one.devices.ravel().tolist())
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, step: step == 5)
        assert train(config, tmp_path / "parts", one.devices.ravel().tolist()).interrupted
    train(config, tmp_path / "parts", one.devices.ravel().tolist())
    checksums = []
    for workdir in ("whole", "parts"):
        with Checkpointer(tmp_path / workdir) as checkpointer:
            checksums.append(checkpointer.read_meta(8)["checksums"])
    assert checksums[0] == checksums[1]
    moments = {name for name in checksums[0] if "opt_state" in name and "blocks" in name}
    assert moments, "the layers that are trained have moments"
    assert not [one for one in checksums[0] if "opt_state" in one and "embedding" in one]


def test_a_share_of_the_rate_scales_the_update():
    config = small.make_config("", optimizer__name="muon", **PLAIN)
    scaled = small.make_config("", optimizer__name="muon", optimizer__lr_scale=(("blocks.*", 0.25),), **PLAIN)
    model, mesh, batch = ModelDefinition(small.model_config(config)), _mesh(1, 1, 1), small.random_batch()
    start = init_state(model, optimizer_for(config, model), mesh, 0).params
    full, quarter = (small.run_step(c, mesh, batch)[0].params for c in (config, scaled))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), full, start)
    less = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), quarter, start)
    np.testing.assert_allclose(less["blocks"]["query"], moved["blocks"]["query"] / 4, atol=1e-6)
    np.testing.assert_array_equal(less["embedding"], moved["embedding"])
