"""Frozen parameters and shares of the learning rate: what is trained, what is kept, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small

from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.export.source import load_source
from lacy_jax.models import flops_per_token
from lacy_jax.training import sharding, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.run import load_run
from lacy_jax.training.signals import StopRequest
from lacy_jax.training.state import (
    ModelDefinition,
    abstract_state,
    init_state,
    optimizer_for,
    state_shardings,
)
from lacy_jax.training.step import make_train_step

CALL, LAST, MIXED = ("call",), ("call", "final_norm.*", "blocks.-1.*"), ("embedding", "blocks.-[12].*norm*")
SETS = {"call": CALL, "last": LAST, "mixed": MIXED, "norms": ("*norm*",)}


def definition(*patterns: str, **overrides) -> ModelDefinition:
    return ModelDefinition(
        small.model_config(small.make_config("", model__n_layers=4, **overrides)), patterns
    )


def one_device():
    config = small.make_config("")
    return sharding.make_mesh(config.mesh, jax.devices()[:1])


def shapes(tree) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree.flatten_with_path(tree)[0]
    }


@pytest.mark.parametrize(
    ("patterns", "first_layer", "want"),
    [
        (CALL, 4, {"call": (64,)}),
        (("blocks.-2.call", "blocks.-[12].query", "blocks.3.key"), 2, None),
        (
            ("blocks.[23].query", "blocks.3.key", "final_norm.scale"),
            2,
            {"blocks.query": (2, 64, 2, 32), "blocks.key": (1, 64, 2, 32), "final_norm.scale": (64,)},
        ),
    ],
)
def test_what_is_trained_is_cut_out(patterns, first_layer, want):
    if want is None:
        with pytest.raises(ConfigError, match=r"'blocks\.-2\.call' matches no parameter"):
            definition(*patterns)
        return
    model = definition(*patterns)
    trained = model.trained.select(model.abstract_params)
    assert shapes(trained) == want
    assert (model.trained.first_layer, model.trained.everything) == (first_layer, False)
    assert model.trained.count == sum(int(np.prod(shape)) for shape in want.values())
    random = np.random.default_rng(0)
    whole = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), model.abstract_params
    )
    part = model.trained.select(whole)
    jax.tree.map(np.testing.assert_array_equal, model.trained.join(whole, part), whole)
    back = shapes(
        jax.tree.map(
            lambda leaf: leaf[leaf != 0], model.trained.join(jax.tree.map(np.zeros_like, whole), part)
        )
    )
    assert {name: size for name, (size,) in back.items() if size} == {
        name: int(np.prod(shape)) for name, shape in want.items()
    }


def test_everything_is_trained_by_default():
    model = definition()
    assert model.trained.everything
    assert model.trained.first_layer == 0
    assert model.trained.select(model.abstract_params) is model.abstract_params
    assert definition("*").trained.everything


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (("cal",), "config.train.trainable: 'cal' matches no parameter; did you mean 'call'?"),
        (("head",), "'head' matches no parameter"),  # The head is the embedding.
        (
            ("blocks.[02].query",),
            "blocks.query is trained in layers 0, 2 of 4; the trained layers must be the last ones",
        ),
    ],
)
def test_patterns_that_mean_nothing_are_refused(patterns, says):
    with pytest.raises(ConfigError) as caught:
        definition(*patterns)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def run(patterns=(), steps=1, mesh=None, **overrides):
    config = small.make_config(
        "",
        train__trainable=patterns,
        **{"model__n_layers": 4, "optimizer__clip_norm": 0.0, "optimizer__warmup_steps": 0, **overrides},
    )
    model = ModelDefinition(small.model_config(config), patterns)
    return model, *small.run_step(config, mesh or one_device(), small.random_batch(), steps)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("options", [{}, {"model__remat": "full", "train__accumulation": 2}])
def test_the_rest_stays_bit_for_bit_and_the_trained_part_moves_as_in_full_training(name, options):
    """One step of AdamW: each number moves by its own gradient alone, so it moves as if all were trained."""
    fresh = init_state(
        definition(), optimizer_for(small.make_config(""), definition()), one_device(), 0
    ).params
    # An epsilon beside which the rounding of a gradient near zero is nothing: else Adam makes a visible step of it.
    options = {**options, "optimizer__eps": 1e-6}
    _, full, _ = run(**options)
    model, state, metrics = run(SETS[name], **options)
    trained = model.trained
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=2e-6),
        trained.select(state.params),
        trained.select(full.params),
    )
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), trained.select(state.params), trained.select(fresh))
    assert all(jax.tree.leaves(moved))
    back = trained.join(state.params, trained.select(fresh))
    jax.tree.map(np.testing.assert_array_equal, back, fresh)
    assert metrics.grad_norm > 0


def test_mask_and_loss_are_those_of_full_training():
    _, _, full = run()
    _, _, some = run(LAST)
    same = {name: np.array_equal(value, getattr(full.loss, name)) for name, value in vars(some.loss).items()}
    # A mean for the log that nothing depends on: the two programs add it up in another order.
    np.testing.assert_allclose(some.loss.p_call, full.loss.p_call, rtol=1e-6)
    assert all(equal for name, equal in same.items() if name != "p_call"), same


@pytest.mark.parametrize("sizes", [{"mesh__fsdp": 4, "mesh__tensor": 2}, {"mesh__sequence": 4}])
def test_it_does_not_depend_on_the_mesh(sizes):
    config = small.make_config("", **sizes)
    mesh = sharding.make_mesh(config.mesh, jax.devices())
    for patterns in (LAST, MIXED):
        _, one, few = run(patterns, steps=2)
        _, eight, many = run(patterns, steps=2, mesh=mesh, **sizes)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, eight.params)
        assert few.loss.n_called == many.loss.n_called


def compiled(*patterns: str):
    config = small.make_config(
        "", model__n_layers=8, model__d_model=256, model__remat="full", train__trainable=patterns
    )
    model, mesh = ModelDefinition(small.model_config(config), patterns), one_device()
    tx = optimizer_for(config, model)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    state = abstract_state(model, tx, mesh)
    with jax.set_mesh(mesh):
        program = step.lower(state, sharding.put_batch(small.random_batch(), mesh), None).compile()
    return model, state, program


def test_neither_moments_nor_gradients_nor_a_backward_pass_are_kept_for_what_is_frozen():
    whole, state, full = compiled()
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert whole.trained.count * 4 == parameters
    for patterns, share in ((CALL, 0.36), (("call", "blocks.-1.*"), None)):
        model, state, some = compiled(*patterns)
        moments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
        assert moments == pytest.approx(2 * 4 * model.trained.count, rel=1e-3, abs=64)
        memory, of_full = some.memory_analysis(), full.memory_analysis()
        assert memory.argument_size_in_bytes < 1.35 * parameters < of_full.argument_size_in_bytes
        frozen = parameters - 4 * model.trained.count
        assert memory.temp_size_in_bytes < of_full.temp_size_in_bytes - 0.8 * frozen, (
            "gradients of what is frozen"
        )
        if (
            share
        ):  # The analysis counts a loop's body once: of a frozen and a trained part there are two loops.
            assert some.cost_analysis()["flops"] < share * full.cost_analysis()["flops"] + 1e6


def test_a_run_goes_on_with_the_same_set_and_is_refused_with_another(
    dataset, one_device, tmp_path, monkeypatch, capsys
):
    config = small.make_config(dataset, train__trainable=LAST, optimizer__ema_decay=0.5)
    train(config, tmp_path / "whole", one_device)
    said = capsys.readouterr().err
    model = load_run(tmp_path / "whole").definition
    total = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params))
    assert f"{model.trained.count:,} of {total:,} parameters trained on 1 cpu devices" in said
    assert "stay random: config.train.init_from is empty" in said
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, step: step == 5)
        assert train(config, tmp_path / "parts", one_device).interrupted
    train(config, tmp_path / "parts", one_device)
    checksums = []
    for workdir in ("whole", "parts"):
        with Checkpointer(tmp_path / workdir) as checkpointer:
            checksums.append(checkpointer.read_meta(12)["checksums"])
    assert checksums[0] == checksums[1]
    assert "params/blocks/query" in checksums[0], "a checkpoint is usable alone"
    assert not [name for name in checksums[0] if name.startswith("optimizer") and "embedding" in name]
    other = small.make_config(dataset, train__trainable=("call",), optimizer__ema_decay=0.5)
    with pytest.raises(CheckpointError) as caught:
        train(other, tmp_path / "whole", one_device)
    says = "config.train.trainable = ['call'] (checkpoint: ['call', 'final_norm.*', 'blocks.-1.*'])"
    assert says in str(caught.value)
    average = load_source(tmp_path / "whole", average="ema").params
    last = load_run(tmp_path / "whole").params
    frozen = model.trained.join(average, model.trained.select(last))
    jax.tree.map(np.testing.assert_array_equal, frozen, last)
    assert np.abs(average["call"] - last["call"]).max() > 1e-6


def test_a_share_of_the_learning_rate_scales_the_update():
    """Of AdamW with a constant rate, one step: an update is proportional to the rate of its parameter."""
    scales = (("*", 0.5), ("blocks.*", 2.0), ("blocks.-1.*", 0.25), ("call", 1.0))
    fresh = init_state(
        definition(), optimizer_for(small.make_config(""), definition()), one_device(), 0
    ).params
    blocks = np.array([2, 2, 2, 0.25])

    def check(path, start, got, want):
        rate = {"call": 1.0, "final_norm": 0.5, "embedding": 0.5}.get(path[0].key)
        rate = blocks.reshape(-1, *[1] * (got.ndim - 1)) if rate is None else rate
        np.testing.assert_allclose(got - start, rate * (want - start), rtol=1e-3, atol=1e-7)

    for patterns in ((), LAST):
        _, plain, _ = run(patterns)
        _, scaled, _ = run(patterns, optimizer__lr_scale=scales)
        trees = (jax.tree.map(np.asarray, tree) for tree in (fresh, scaled.params, plain.params))
        jax.tree_util.tree_map_with_path(check, *trees)


@pytest.mark.parametrize(
    ("scales", "says"),
    [
        ((("blocks.9.*", 0.5),), "config.optimizer.lr_scale: 'blocks.9.*' matches no parameter"),
        ((("call", 0.0),), "config.optimizer.lr_scale: 'call' has 0.0: must be positive"),
    ],
)
def test_shares_that_mean_nothing_are_refused(scales, says):
    with pytest.raises(ConfigError) as caught:
        optimizer_for(small.make_config("", optimizer__lr_scale=scales, model__n_layers=4), definition())
    assert says in str(caught.value)


def test_flops_are_those_that_are_needed():
    full = definition().trained.flops_per_token(32)
    assert full == flops_per_token(definition().config, 32)
    call = definition("call").trained.flops_per_token(32)
    assert full / 3 < call < full / 3 + 1000, "a forward pass and the gradient of one vector"
    assert definition("*norm*").trained.flops_per_token(32) == pytest.approx(2 / 3 * full, rel=0.2)
    matrices = definition("embedding", "call", "blocks.*").trained.flops_per_token(32)
    assert matrices == pytest.approx(full, rel=1e-6)
    last = definition("call", "blocks.-1.*").trained.flops_per_token(32)
    assert call < last < definition("call", "blocks.-[12].*").trained.flops_per_token(32) < full
