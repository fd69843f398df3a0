"""One step: golden metrics, accumulation, dropped updates, donation."""

from __future__ import annotations

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax import objectives
from lacy_jax.config import validate
from lacy_jax.errors import ConfigError
from lacy_jax.objectives import LossMetrics, policies
from lacy_jax.objectives import loss as loss_module
from lacy_jax.training import sharding, train
from lacy_jax.training.chips import SCATTER_OPTIONS, SPLIT_OPTIONS, SUM_OPTIONS
from lacy_jax.training.micro_batches import combine_metrics
from lacy_jax.training.optimizer import OPTIMIZERS, make_optimizer
from lacy_jax.training.state import ModelDefinition, abstract_state, init_state, state_shardings
from lacy_jax.training.step import compiler_options, make_train_step, refused_options, updated

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def mesh(one_device):
    return sharding.make_mesh(small.make_config("").mesh, one_device)


# Metrics of the second step of a fixed tiny model on a fixed batch. A change here means that training itself changed:
# initialisation, mask, loss, optimiser or schedule. If that is intended, run this test and copy what it prints; if you
# only changed speed, memory or layout, do not touch it but find out why.
GOLDEN = {
    "loss": 5.624949, "call_loss": 0.832398, "learn_loss": 4.792551, "z_loss": 0.0, "weight_sum": 172.0, "n_called": 25.0,
    "n_learned": 147.0, "n_ignored": 0.0, "factual_rate": 0.279070, "realised_call_rate": 0.145349, "threshold": 5.719334,
    "nll_all": 5.641906, "nll_called": 5.843571, "nll_learned": 5.607610, "nll_factual": 5.673862, "nll_other": 5.629538,
    "p_call": 0.00323011, "grad_norm": 0.961657, "learning_rate": 0.0015,
}  # fmt: skip


def test_golden_second_step(mesh):
    _, metrics = small.run_step(small.make_config(""), mesh, small.random_batch(), steps=2)
    found = {name: float(getattr(metrics.loss, name)) for name in metrics.loss.present}
    found |= {"grad_norm": float(metrics.grad_norm), "learning_rate": float(metrics.learning_rate)}
    assert found == pytest.approx(GOLDEN, rel=1e-4), (
        f"update GOLDEN only if training was meant to change:\n{found}"
    )


def test_accumulation_by_itself_changes_nothing(mesh):
    """Plain next-token prediction: four micro-batches of unequal numbers of targets, or one batch."""
    batch = small.random_batch()
    weights = batch.weights.copy()
    weights[::4, 2:] = False  # Micro-batch 0 has far fewer targets than the others.
    batch = dataclasses.replace(batch, weights=weights)
    results = [
        small.run_step(small.make_config("", objective__policy="ntp", train__accumulation=a), mesh, batch)
        for a in (1, 4)
    ]
    (whole_state, whole), (parts_state, parts) = results
    assert float(parts.loss.loss) == pytest.approx(float(whole.loss.loss), rel=1e-6)
    assert float(parts.loss.weight_sum) == weights.sum()
    assert float(parts.grad_norm) == pytest.approx(float(whole.grad_norm), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves(whole_state.opt_state), jax.tree.leaves(parts_state.opt_state), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-7)


def test_mask_is_made_per_micro_batch(mesh):
    """floor(call_rate * N) of each micro-batch is called, and micro-batch i holds rows i, i + A, ..."""
    batch = small.random_batch()
    batch = dataclasses.replace(batch, labels={**batch.labels, "factual": batch.weights})
    _, metrics = small.run_step(
        small.make_config("", train__accumulation=4, objective__call_rate=0.11), mesh, batch
    )
    per_micro_batch = [int(np.floor(0.11 * batch.weights[i::4].sum())) for i in range(4)]
    in_blocks = [int(np.floor(0.11 * batch.weights[2 * i : 2 * i + 2].sum())) for i in range(4)]
    assert int(metrics.loss.n_called) == sum(per_micro_batch)
    # Else the test shows nothing.
    assert sum(per_micro_batch) not in (sum(in_blocks), int(np.floor(0.11 * batch.weights.sum())))


@pytest.mark.parametrize("policy", ["lacy", "loss", "lacy_ignore", "idk"])
def test_one_mask_for_the_step_is_that_of_no_accumulation(mesh, monkeypatch, policy):
    """Of ranks, of random draws, of what is ignored, and of shares: per token; then the same update as far as sums go."""
    seen = []
    made = policies.delegation_mask

    def recorded(*args, **kwargs):
        mask = made(*args, **kwargs)
        jax.debug.callback(lambda *found: seen.append([np.asarray(x) for x in found]), mask.call, mask.learn)
        return mask

    monkeypatch.setattr(loss_module, "delegation_mask", recorded)
    monkeypatch.setattr(objectives, "delegation_mask", recorded)
    batch = small.random_batch()
    fields = {"objective__policy": policy, "objective__mask_scope": "step", "objective__call_rate": 0.11}
    results = [
        small.run_step(small.make_config("", train__accumulation=a, **fields), mesh, batch) for a in (1, 4)
    ]
    jax.effects_barrier()
    one, four = seen
    for a, b in zip(one, four, strict=True):
        if (
            policy == "idk"
        ):  # Shares are numbers of the softmax, whose last bits two programs may round differently.
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)
    assert one[0].any()
    (_, whole), (_, parts) = results
    for name in ("n_called", "n_learned", "n_ignored", "weight_sum"):
        assert float(getattr(parts.loss, name)) == float(getattr(whole.loss, name)), name
    for name in ("loss", "threshold", "nll_called", "nll_learned", "p_call"):
        ours, theirs = (float(getattr(found.loss, name)) for found in (parts, whole))
        assert ours == pytest.approx(theirs, rel=1e-5), name
    assert float(parts.grad_norm) == pytest.approx(float(whole.grad_norm), rel=1e-5)


def test_metrics_of_micro_batches_combine_by_their_tokens():
    one = {f.name: jnp.array([1.0, 1.0]) for f in dataclasses.fields(LossMetrics)}
    stacked = LossMetrics(
        **{
            **one,
            "weight_sum": jnp.array([10.0, 30.0]),
            "loss": jnp.array([2.0, 4.0]),
            "n_called": jnp.array([0.0, 6.0]),
            "nll_called": jnp.array([0.0, 5.0]),
            "factual_rate": jnp.array([0.5, 0.1]),
            "nll_factual": jnp.array([1.0, 2.0]),
            "nll_other": jnp.array([1.0, 3.0]),
        }
    )
    found = combine_metrics(stacked)
    assert float(found.loss) == pytest.approx((2 * 10 + 4 * 30) / 40)
    assert (float(found.weight_sum), float(found.n_called)) == (40, 6)
    assert float(found.nll_called) == 5.0  # The micro-batch without calls says nothing about called tokens.
    assert float(found.factual_rate) == pytest.approx((5 + 3) / 40)
    assert float(found.nll_factual) == pytest.approx((1 * 5 + 2 * 3) / 8)
    assert float(found.nll_other) == pytest.approx((1 * 5 + 3 * 27) / 32)


def test_update_that_is_not_finite_is_dropped_bit_for_bit(mesh):
    config = small.make_config("")
    model = ModelDefinition(small.model_config(config))
    tx = make_optimizer(config, model.axes)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    batch = sharding.put_batch(small.random_batch(), mesh)
    with jax.set_mesh(mesh):
        good, _ = step(init_state(model, tx, mesh, 0), batch, None)
        poisoned = dataclasses.replace(
            good,
            params={
                **good.params,
                "final_norm": jax.tree.map(lambda x: x * jnp.nan, good.params["final_norm"]),
            },
        )
        before = jax.tree.map(np.asarray, (poisoned.params, poisoned.opt_state))
        after, metrics = step(poisoned, batch, None)
        assert not bool(metrics.finite)
        jax.tree.map(
            np.testing.assert_array_equal, before, jax.tree.map(np.asarray, (after.params, after.opt_state))
        )
        assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)
        healed = dataclasses.replace(after, params=init_state(model, tx, mesh, 0).params)
        last, metrics = step(healed, batch, None)
        assert (int(last.step), int(last.skipped), int(last.skipped_in_row)) == (3, 1, 0)
        # The schedule did not advance on the dropped update: third step, second update.
        assert float(metrics.learning_rate) == pytest.approx(3e-3 * 2 / 4)


def test_state_is_donated(mesh):
    config = small.make_config("")
    model = ModelDefinition(small.model_config(config))
    tx = make_optimizer(config, model.axes)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    state = init_state(model, tx, mesh, 0)
    with jax.set_mesh(mesh):
        step(state, sharding.put_batch(small.random_batch(), mesh), None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the compiler of jax 0.10 copies the moments all the same"
)
def test_the_optimisers_state_is_written_where_it_is(mesh):
    """On a CPU, where each array is written by a loop of its own: no copy of a moment is made before it."""
    config = small.make_config("")
    model = ModelDefinition(small.model_config(config))
    tx = make_optimizer(config, model.axes)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(small.random_batch(), mesh)
        text = step.lower(abstract_state(model, tx, mesh), batch, None).compile().as_text()
    assert re.search(r"%state_opt_state\S*__mu__", text), "the names of the state are others now"
    assert not re.findall(r"f32\[\S+ copy\(%state_\S+\)", text)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_update_in_two_parts_is_that_in_one(mesh, name, ema):
    """Parameters before the state, as on a CPU, or both at once."""
    config = small.make_config("", optimizer__name=name, optimizer__ema_decay=ema)
    model = ModelDefinition(small.model_config(config))
    tx = make_optimizer(config, model.axes)
    params, found = model.init(jax.random.key(0)), {}
    for apart in (True, False):
        state, now = tx.init(params), params
        update = jax.jit(functools.partial(updated, tx, apart=apart))
        for seed, loss in enumerate((1.0, np.inf, 1.0)):
            now, state, *told = update(now, state, model.init(jax.random.key(1 + seed)), jnp.float32(loss))
        found[apart] = (now, state, told)
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7)


def test_parameters_are_float32_under_bfloat16_compute(mesh):
    config = small.make_config("", model__dtype="bfloat16")
    model = ModelDefinition(small.model_config(config))
    tx = make_optimizer(config, model.axes)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    with jax.set_mesh(mesh):
        state, metrics = jax.eval_shape(step, abstract_state(model, tx, mesh), small.random_batch(), None)
        tokens = jnp.zeros((1, 4), jnp.int32)
        hidden = jax.eval_shape(lambda p: model.merge(p)(tokens, tokens, tokens), state.params)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, metrics.loss))} == {jnp.dtype("float32")}
    assert hidden.dtype == jnp.bfloat16


def test_compiler_options_are_for_tpus_and_the_configs_come_last(mesh):
    """test_plan_tpu.py gives one to the TPU's own compiler."""

    def tpus(fsdp: int, layers: int = 1) -> types.SimpleNamespace:
        chips = [types.SimpleNamespace(platform="tpu", coords=(0, 0, z)) for z in range(layers)]
        return types.SimpleNamespace(devices=np.array(chips), shape={"fsdp": fsdp})

    a_tpu = tpus(1)
    options = ("--xla_tpu_a=true", "b=x=y")
    config = small.make_config("", train__compiler_options=options)
    validate(config)
    assert compiler_options(config, a_tpu) == {"xla_tpu_a": "true", "b": "x=y"}
    assert compiler_options(config, mesh) == {}
    assert compiler_options(small.make_config(""), a_tpu) == {}
    # Ours, where parameters are split; gradients are not scattered in three dimensions.
    ours = SPLIT_OPTIONS | SCATTER_OPTIONS
    assert compiler_options(small.make_config("", train__shard_optimizer=True), a_tpu) == ours
    assert compiler_options(small.make_config(""), tpus(2)) == ours
    assert compiler_options(small.make_config(""), tpus(2, layers=4)) == SPLIT_OPTIONS | SUM_OPTIONS
    config = small.make_config(
        "", train__shard_optimizer=True, train__compiler_options=(f"{list(ours)[-1]}=7",)
    )
    assert compiler_options(config, a_tpu) == ours | {list(ours)[-1]: "7"}


@pytest.mark.parametrize("options", ["a=1", ("a",), ("a=",), ("=1",), ("--",)])
def test_compiler_options_of_another_form_are_one_line(options):
    config = small.make_config("")
    with config.ignore_type():
        config.train.compiler_options = options
    with pytest.raises(
        ConfigError, match=r'^config\.train\.compiler_options = .*: expected \("NAME=VALUE", \.\.\.\)$'
    ):
        validate(config)


def test_options_that_the_compiler_refuses_are_a_fault_of_the_config_and_not_of_a_peer(
    dataset, one_device, tmp_path, monkeypatch
):
    def refused(*_):
        raise error

    config = small.make_config(dataset, train__compiler_options=("a=1",))
    error = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: 'a'\nmore")
    assert str(refused_options(config, error)) == (
        "config.train.compiler_options = ('a=1',): INVALID_ARGUMENT: No such compile option: 'a'"
    )
    assert refused_options(config, jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")) is None
    assert refused_options(small.make_config(dataset), error) is None
    monkeypatch.setattr("lacy_jax.training.loop.make_train_step", lambda *_: refused)
    with pytest.raises(ConfigError, match="No such compile option"):
        train(config, tmp_path / "run", one_device)
