"""Quantised training through qwix: what it multiplies in 8 bits, and how little it disturbs the mask."""

from __future__ import annotations

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_small as small
from scipy import stats

from lacy_jax.dataset import make_input
from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.models import Transformer
from lacy_jax.training import sharding, train
from lacy_jax.training.quantization import QUANTIZATIONS, check_quantization, quantized
from lacy_jax.training.run import load_run
from lacy_jax.training.state import ModelDefinition, abstract_state, optimizer_for, state_shardings
from lacy_jax.training.step import make_train_step

KINDS = [name for name in QUANTIZATIONS if name != "none"]


def one_mesh():
    return sharding.make_mesh(small.make_config("").mesh, jax.devices()[:1])


def program(name: str, mesh=None, compiled=False, **overrides) -> str:
    """The step as text: as it is lowered, or compiled."""
    config = small.make_config("", train__quantization=name, **overrides)
    model, mesh = ModelDefinition(small.model_config(config)), mesh or one_mesh()
    tx = optimizer_for(config, model)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh))
    with jax.set_mesh(mesh):
        lowered = step.lower(
            abstract_state(model, tx, mesh), sharding.put_batch(small.random_batch(), mesh), None
        )
        return lowered.compile().as_text() if compiled else lowered.as_text()


def products(text: str, kind: str) -> int:
    """Matmuls whose operands are of a type."""
    return len(
        re.findall(rf"stablehlo.dot_general .*: \(tensor<[0-9x]*{kind}>, tensor<[0-9x]*{kind}>\)", text)
    )


def test_it_is_off_by_default_and_leaves_no_trace():
    """qwix replaces jax's functions while a model is traced: what is traced before and after is the same."""
    assert small.make_config("").train.quantization == "none"
    model = Transformer.__new__(Transformer)
    assert quantized(model, "none") is model
    before = program("none")
    assert "i8>" not in before
    program("int8")
    jax.clear_caches()
    assert program("none") == before


@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("int8", "i8", 14), ("int8_forward", "i8", 0), ("fp8", "f8E4M3FN", 0)]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_matmuls_of_the_layers_are_in_8_bits_and_no_others(name, forward, backward, family):
    text = program(name, model__family=family, model__dtype="bfloat16")
    matrices = 7 if family == "llama" else 6  # One scanned layer: q, k, v, out, feed-forward.
    assert products(text, forward) == matrices + (2 * matrices if backward else 0)
    if name == "fp8":
        assert "f8E5M2" in text
    # Scores, mixed values and the head of the loss stay as they are.
    assert products(text, "bf16") + products(text, "f32") >= 4


@pytest.fixture(scope="module")
def trained(finished_run):
    """(parameters after 12 steps, batches of the dataset that it was trained on)."""
    run = load_run(finished_run)
    config = run.config
    pipeline = make_input(
        config, split="valid", epochs=1, tokenizer_hash=run.tokenizer.hash, drop_remainder=False
    )
    batches = list(pipeline)
    pipeline.close()
    return run, batches


def loss_and_gradient(run, batch, name):
    from lacy_jax.training.step import _loss

    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.train.quantization = name
    mesh = one_mesh()

    def loss(params, batch):
        return _loss(config, run.definition, mesh, params, batch, jax.random.key(0), None, None)

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(run.params, sharding.put_batch(batch, mesh))


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_stay_near_those_without(name, trained):
    """Bounds with a margin over what is measured here: see docs/running.md for a model of real text."""
    run, batches = trained
    (want, _), exact = loss_and_gradient(run, batches[0], "none")
    (got, metrics), gradient = loss_and_gradient(run, batches[0], name)
    assert float(got) != float(want)
    assert float(got) == pytest.approx(float(want), rel=0.01 if "int8" in name else 0.03)
    assert int(metrics.n_called) > 0
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > (0.97 if "int8" in name else 0.9)


@pytest.mark.parametrize("name", KINDS)
def test_the_mask_ranks_almost_as_without(name, trained):
    run, batches = trained
    overlaps, ranks = [], []

    @jax.jit
    def nll(params, batch):
        model = run.definition.merge(params)
        found = []
        for kind in ("none", name):
            hidden = quantized(model, kind)(batch.tokens, batch.positions, batch.segment_ids)
            z, _ = model.logits(hidden)
            found.append(
                jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, batch.targets[..., None], -1)[..., 0]
            )
        return found

    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        exact, rounded = (np.asarray(x) for x in nll(run.params, batch))
        facts = np.asarray(batch.labels["factual"])
        k = int(0.15 * np.sum(np.asarray(batch.weights)))
        called = [
            set(np.argsort(-np.where(facts, x, -np.inf).ravel(), kind="stable")[:k]) for x in (exact, rounded)
        ]
        overlaps.append(len(called[0] & called[1]) / k)
        ranks.append(stats.spearmanr(exact[facts], rounded[facts]).statistic)
    assert np.mean(overlaps) > (0.95 if "int8" in name else 0.9)
    assert np.mean(ranks) > (0.995 if "int8" in name else 0.98)


@pytest.mark.parametrize("sizes", [{"mesh__fsdp": 4, "mesh__tensor": 2}, {"mesh__sequence": 4}])
def test_scales_are_those_of_whole_rows_and_columns_on_any_mesh(sizes):
    config = small.make_config("", train__quantization="int8", **sizes)
    mesh = sharding.make_mesh(config.mesh, jax.devices())
    one, few = small.run_step(config, one_mesh(), small.random_batch(), 2)
    eight, many = small.run_step(config, mesh, small.random_batch(), 2)
    assert few.loss.n_called == many.loss.n_called
    assert float(few.loss.loss) == pytest.approx(float(many.loss.loss), rel=2e-4)
    # A number at the edge of two steps of the scale may round either way, and Adam's first steps show its sign: 3.7 % here.
    apart = [
        np.abs(np.asarray(a) - np.asarray(b))
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params))
    ]
    assert np.mean(np.concatenate([x.ravel() for x in apart]) > 1e-4) < 0.06


def test_a_quantised_run_learns_goes_on_and_is_refused_without(dataset, one_device, tmp_path):
    config = small.make_config(dataset, train__quantization="int8", model__remat="full")
    result = train(config, tmp_path, one_device)
    assert result.valid["nll"] < 4.5
    assert load_run(tmp_path).params["blocks"]["query"].dtype == jnp.float32
    with config.unlocked():
        config.train.quantization = "none"
    with pytest.raises(CheckpointError, match=r"config.train.quantization = 'none' \(checkpoint: 'int8'\)"):
        train(config, tmp_path, one_device)


def test_what_a_chip_cannot_multiply_is_refused(monkeypatch):
    check_quantization("none", "anything")
    for name in KINDS:
        check_quantization(name, "cpu")
        check_quantization(name, "TPU7x")
        check_quantization(name, "NVIDIA H100 80GB HBM3")
    check_quantization("int8", "TPU v5 lite")
    with pytest.raises(ConfigError, match="TPU v6 lite does not support it"):
        check_quantization("fp8", "TPU v6 lite")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"needs the package qwix"):
        check_quantization("int8", "cpu")
