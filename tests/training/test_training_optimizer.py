"""Schedules at known points; AdamW against a plain implementation; what decays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax import cli
from lacy_jax.errors import ConfigError
from lacy_jax.export.source import load_source
from lacy_jax.training import load_run, sharding, train
from lacy_jax.training.optimizer import averaged, decay_mask, learning_rate_schedule, make_optimizer
from lacy_jax.training.state import ModelDefinition

pytestmark = pytest.mark.oldest


def _rates(**overrides) -> np.ndarray:
    config = small.make_config("", train__steps=100, optimizer__learning_rate=1.0, optimizer__warmup_steps=10)
    for name, value in overrides.items():
        config.optimizer[name] = value
    schedule = learning_rate_schedule(config)
    return np.array([float(schedule(step)) for step in range(100)])


def test_warmup_is_linear_from_the_first_step():
    np.testing.assert_allclose(_rates()[:10], np.arange(1, 11) / 10, rtol=1e-6)


def test_cosine_ends_at_the_final_rate():
    rates = _rates(schedule="cosine", final_lr_fraction=0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    middle = 10 + 89 / 2  # Halfway the cosine is halfway down.
    assert np.interp(middle, np.arange(100), rates) == pytest.approx(0.55, abs=1e-3)
    assert (np.diff(rates[10:]) < 0).all()


def test_wsd_is_flat_then_linear():
    rates = _rates(schedule="wsd", decay_fraction=0.2, final_lr_fraction=0.0)
    np.testing.assert_allclose(rates[10:80], 1.0)
    assert rates[99] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(np.diff(rates[80:]), -1 / 20, rtol=1e-4)


@pytest.mark.parametrize("warmup", [0, 1, 10, 98, 99])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_update_has_the_final_rate_however_little_is_left(schedule, warmup):
    rates = _rates(schedule=schedule, warmup_steps=warmup, decay_fraction=0.01, final_lr_fraction=0.1)
    assert rates[99] == pytest.approx(0.1)
    assert warmup == 0 or rates[warmup - 1] == pytest.approx(1.0)
    assert (np.diff(rates[max(warmup - 1, 0) :]) <= 0).all()


@pytest.mark.parametrize(("warmup", "share"), [(10, 0.9), (80, 0.2), (95, 0.05), (99, 0.01), (0, 1.0)])
def test_wsd_without_a_flat_part_decays_from_the_last_step_of_the_warmup(warmup, share):
    decay = 100 - warmup
    rates = _rates(schedule="wsd", warmup_steps=warmup, decay_fraction=share, final_lr_fraction=0.1)
    np.testing.assert_allclose(rates[warmup:], 1.0 - 0.9 * np.arange(1, decay + 1) / decay, rtol=1e-5)


def test_the_length_of_the_decay_is_that_of_the_number_as_it_is_written():
    rates = _rates(schedule="wsd", decay_fraction=0.575)  # In floats 0.575 * 100 is less than 57.5.
    np.testing.assert_allclose(rates[10:42], 1.0, rtol=1e-6)
    assert rates[42] < 0.99


def test_constant_stays():
    np.testing.assert_allclose(_rates(schedule="constant")[10:], 1.0)


def test_no_warmup():
    assert _rates(schedule="constant", warmup_steps=0)[0] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 100}, r"config.optimizer.warmup_steps = 100: must be in \[0, train.steps = 100\)"),
        (
            {"schedule": "wsd", "decay_fraction": 0.95},
            r"warm-up \(10\) and decay \(95\) exceed train.steps = 100",
        ),
        (
            {"schedule": "wsd", "decay_fraction": 0.0},
            r"config.optimizer.decay_fraction = 0.0: must be in \(0, 1\]",
        ),
        ({"final_lr_fraction": 1.5}, r"config.optimizer.final_lr_fraction = 1.5: must be in \[0, 1\]"),
        (
            {"schedule": "linear"},
            "config.optimizer.schedule = 'linear': expected one of cosine, wsd, constant",
        ),
    ],
)
def test_schedules_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        _rates(**fields)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weight_decay_is_on_matrices_only(family):
    model = ModelDefinition(
        small.model_config(small.make_config("", model__family=family, model__qk_norm=True))
    )
    mask = decay_mask(model.axes)
    assert mask["embedding"]
    assert mask["blocks"]["query"]
    assert mask["blocks"]["attention_out"]
    assert mask["blocks"]["mlp_in"]
    assert not mask["call"]
    assert not mask["final_norm"]["scale"]
    assert not mask["blocks"]["mlp_norm"]["scale"]
    assert not mask["blocks"]["query_norm"]
    if family == "gpt2":
        assert not mask["blocks"]["query_bias"]
        assert not mask["blocks"]["mlp_in_bias"]


@pytest.mark.parametrize("clip", [0.5, 50.0], ids=["clipped", "not clipped"])
def test_two_updates_equal_adamw_written_out(clip):
    """Clipping to the global norm, bias-corrected moments, decoupled decay on the matrix but not on the vector."""
    config = small.make_config(
        "", optimizer__schedule="constant", optimizer__warmup_steps=0, optimizer__clip_norm=clip
    )
    c = config.optimizer
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}
    tx = make_optimizer(config, {"w": ("embed", "mlp"), "b": ("feature",)})
    on_device = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    state = tx.init(on_device)
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in params.items()}
    for t in (1, 2):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        updates, state = tx.update(
            {n: jnp.asarray(g, jnp.float32) for n, g in grads.items()}, state, on_device
        )
        on_device = {n: on_device[n] + updates[n] for n in params}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, value in params.items():
            g = grads[name] * min(1.0, clip / norm)
            m = c.b1 * moments[name][0] + (1 - c.b1) * g
            v = c.b2 * moments[name][1] + (1 - c.b2) * g**2
            moments[name] = m, v
            update = (m / (1 - c.b1**t)) / (np.sqrt(v / (1 - c.b2**t)) + c.eps)
            decay = c.weight_decay * value if name == "w" else 0.0
            params[name] = value - c.learning_rate * (update + decay)
            np.testing.assert_allclose(np.asarray(on_device[name]), params[name], rtol=2e-5)


def test_the_moving_average_is_that_of_the_checkpoints(tmp_path, capsys):
    """A run of six steps that keeps them all: its average against the definition."""
    dataset = small.write_dataset(tmp_path / "data")
    config = small.make_config(
        dataset,
        train__steps=6,
        train__eval_every=0,
        checkpoint__every=1,
        checkpoint__keep=6,
        optimizer__ema_decay=0.6,
    )
    train(config, tmp_path / "run")
    weights = np.array([0.6 ** (6 - step) for step in range(1, 7)])
    parts = [load_run(tmp_path / "run", step).params for step in range(1, 7)]
    want = jax.tree.map(lambda *xs: np.tensordot(weights / weights.sum(), np.stack(xs), 1), *parts)
    got = load_source(tmp_path / "run", average="ema")
    assert (got.steps, got.ema) == ((6,), 0.6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got.params, want)
    assert jax.tree.reduce(max, jax.tree.map(lambda a, b: np.abs(a - b).max(), got.params, parts[-1])) > 1e-4
    out = tmp_path / "mean"
    assert (
        cli.main(["export", f"--workdir={tmp_path / 'run'}", "--format=run", "--average=ema", f"--out={out}"])
        == 0
    )
    jax.tree.map(np.testing.assert_array_equal, load_run(out).params, got.params)
    assert cli.main(["inspect", f"--workdir={out}"]) == 0
    assert "moving average (decay 0.6) at step 6" in capsys.readouterr().out


def test_a_moving_average_changes_no_update_and_takes_no_place_when_off():
    plain = small.make_config("")
    kept = small.make_config("", optimizer__ema_decay=0.9)
    mesh = sharding.make_mesh(plain.mesh, jax.devices()[:1])
    batch = small.random_batch()
    without, _ = small.run_step(plain, mesh, batch, steps=3)
    with_average, _ = small.run_step(kept, mesh, batch, steps=3)
    jax.tree.map(np.testing.assert_array_equal, without.params, with_average.params)
    assert averaged(without.opt_state, 0.9) is None
    assert len(jax.tree.leaves(with_average.opt_state)) == len(jax.tree.leaves(without.opt_state)) + 1 + len(
        jax.tree.leaves(without.params)
    )


def test_the_moving_average_does_not_depend_on_the_mesh():
    config = small.make_config("", optimizer__ema_decay=0.9)
    batch, averages = small.random_batch(), []
    for count, fsdp in ((1, 1), (4, 2)):
        with config.unlocked():
            config.mesh.fsdp = fsdp
        state, _ = small.run_step(
            config, sharding.make_mesh(config.mesh, jax.devices()[:count]), batch, steps=3
        )
        averages.append(averaged(state.opt_state, 0.9))
        places = {x.sharding.spec for x in jax.tree.leaves(state.params)}
        assert {
            x.sharding.spec for x in jax.tree.leaves(averages[-1])
        } == places  # Sharded like the parameters.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *averages)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    config = small.make_config("", optimizer__ema_decay=decay)
    with pytest.raises(ConfigError, match="ema_decay"):
        make_optimizer(config, ModelDefinition(small.model_config(config)).axes)


def test_no_average_was_kept(tmp_path):
    dataset = small.write_dataset(tmp_path / "data")
    train(
        small.make_config(dataset, train__steps=1, train__eval_every=0, optimizer__warmup_steps=0),
        tmp_path / "run",
    )
    with pytest.raises(ConfigError, match=r"--average=ema: .* keeps no moving average"):
        load_source(tmp_path / "run", average="ema")
