"""A run with a query head: what it learns and writes, resuming, what is refused; and that without it nothing changes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import training_small as small
from flax import nnx

from lacy_jax.dataset import open_split, write_extra
from lacy_jax.dataset.query_links import QUERY_ENTRY, places_of, write_links
from lacy_jax.errors import CheckpointError, ConfigError, DataError
from lacy_jax.models import Transformer, count_params
from lacy_jax.objectives import QueryTargets
from lacy_jax.training import load_run, read_metrics, sharding, train
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.signals import StopRequest

pytestmark = pytest.mark.oldest

Q = 16


def link(path: str, seed: int = 0) -> None:
    """Link each document's fact to an entry of its own, with a random vector."""
    source = open_split(path, "train")
    numbers = (
        np.where(source[at].labels["factual"], at + 1, 0).astype(np.int32) for at in range(len(source))
    )
    write_extra(path, QUERY_ENTRY, "train", numbers)
    vectors = np.random.default_rng(seed).normal(size=(len(source), Q)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    negatives = np.roll(np.arange(1, len(source) + 1), -1)[:, None]
    write_links(path, "word", vectors, negatives)


@pytest.fixture(scope="module")
def linked(tmp_path_factory) -> str:
    path = small.write_dataset(tmp_path_factory.mktemp("linked") / "dataset")
    link(path)
    return path


@pytest.fixture(scope="module")
def finished(linked, one_device, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(config_of(linked), workdir, one_device)
    return workdir


def config_of(dataset: str, **overrides):
    return small.make_config(dataset, **{"model__query_dim": Q, "objective__call_rate": 0.3} | overrides)


def checksums(workdir, step=12):
    with Checkpointer(workdir) as checkpointer:
        return checkpointer.read_meta(step)["checksums"]


def batch_with_queries():
    """`small.random_batch` in which every fact comes from one of 30 entries."""
    batch, r = small.random_batch(), np.random.default_rng(7)
    linked = np.where(batch.labels["factual"], r.integers(1, 31, batch.weights.shape), 0).astype(np.int32)
    vectors = r.normal(size=(31, Q)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries = np.zeros((len(linked), places_of(linked.shape[1])), np.int32)
    for row, own in zip(entries, linked, strict=True):
        stated = np.unique(own[own > 0])[: len(row)]
        row[: len(stated)] = stated
    return dataclasses.replace(
        batch,
        labels={**batch.labels, QUERY_ENTRY: linked},
        queries=QueryTargets(entries, vectors[entries]),
    )


def test_it_learns_to_ask_and_says_so(finished, linked):
    lines = [line for line in read_metrics(finished) if line["split"] == "train"]
    assert lines[-1]["query_loss"] < lines[0]["query_loss"]
    assert all(0 < line["n_queries"] <= line["n_called"] for line in lines)
    run = load_run(finished)
    assert run.model_config.query_dim == Q
    assert sum(leaf.size for leaf in jax.tree.leaves(run.params)) == count_params(run.model_config)
    queries = np.asarray(run.model.queries(np.ones((2, 3, 64), np.float32)))
    np.testing.assert_allclose(np.linalg.norm(queries, axis=-1), 1, rtol=1e-5)


def test_stopped_and_resumed_equals_uninterrupted(linked, one_device, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, step: step == 7)
        train(config_of(linked), tmp_path, one_device)
    train(config_of(linked), tmp_path, one_device)
    assert checksums(tmp_path) == checksums(finished)


def test_a_run_with_other_entries_is_another_run(one_device, tmp_path):
    path = small.write_dataset(tmp_path / "dataset")
    link(path)
    train(config_of(path, train__steps=5), tmp_path / "run", one_device)
    link(path, seed=1)
    with pytest.raises(CheckpointError, match=r"another run: queries\.entries"):
        train(config_of(path, train__steps=5), tmp_path / "run", one_device)


def test_one_step_is_the_same_on_eight_devices():
    """Loss, metrics and updates: negatives and mask are those of the global batch."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 simulated devices (XLA_FLAGS is set in conftest.py)")
    batch, results = batch_with_queries(), []
    for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "sequence": 2}):
        config = config_of("")
        config.mesh.update(mesh)
        count = int(np.prod(list(mesh.values())))
        results.append(small.run_step(config, sharding.make_mesh(config.mesh, jax.devices()[:count]), batch))
    (one, alone), (eight, together) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), alone.loss, together.loss)
    assert float(alone.loss.n_queries) > 20
    # AdamW's first update is the sign of the gradient; what is almost 0 may go either way.
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)) > 1e-4
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True)
    ]
    assert sum(m.sum() for m in moved) < 1e-3 * sum(m.size for m in moved)


def test_only_the_gradient_knows_what_is_asked_for(one_device):
    """The model is not told: other entries change no loss but the query head's, and no mask."""
    mesh, batch = sharding.make_mesh(config_of("").mesh, one_device), batch_with_queries()
    vectors = np.roll(batch.queries.vectors, 1, axis=-1)
    other = dataclasses.replace(batch, queries=QueryTargets(batch.queries.entries, vectors))
    (_, one), (_, another) = (small.run_step(config_of(""), mesh, b) for b in (batch, other))
    for name in (
        "call_loss",
        "learn_loss",
        "nll_all",
        "nll_factual",
        "nll_other",
        "p_call",
        "threshold",
        "n_called",
    ):
        assert float(getattr(one.loss, name)) == float(getattr(another.loss, name)), name
    assert float(one.loss.query_loss) != float(another.loss.query_loss)
    assert float(one.grad_norm) != float(another.grad_norm)


def test_micro_batches_have_their_own_negatives(one_device):
    """Counts add up, and the loss has fewer negatives."""
    mesh = sharding.make_mesh(config_of("").mesh, one_device)
    batch = batch_with_queries()
    batch = dataclasses.replace(batch, labels={**batch.labels, "factual": batch.labels[QUERY_ENTRY] > 0})
    _, whole = small.run_step(config_of(""), mesh, batch)
    _, parts = small.run_step(config_of("", train__accumulation=4, objective__mask_scope="step"), mesh, batch)
    assert float(parts.loss.n_queries) == float(whole.loss.n_queries)
    assert 0 < float(parts.loss.query_loss) < float(whole.loss.query_loss)


def test_without_it_parameters_are_as_before(one_device):
    """The other parameters of a model with the head start with the same bits, and a model without it has no trace of it."""

    def params(dim):
        cfg = dataclasses.replace(small.model_config(small.make_config("")), query_dim=dim)
        return nnx.to_pure_dict(nnx.state(Transformer(cfg, rngs=nnx.Rngs(3))))

    without, with_head = params(0), params(Q)
    assert set(with_head) - set(without) == {"query_head", "query_scale"}
    jax.tree.map(np.testing.assert_array_equal, without, {name: with_head[name] for name in without})


def test_without_it_a_linked_dataset_trains_the_same_model(linked, finished_run, one_device, tmp_path):
    train(small.make_config(linked), tmp_path, one_device)
    assert checksums(tmp_path) == checksums(finished_run)
    assert not any("query" in name for name in read_metrics(tmp_path)[0])


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"objective__policy": "ntp"}, ConfigError, "query_dim = 16: .*policy 'ntp' delegates none"),
        ({"model__query_dim": -1}, ConfigError, "query_dim = -1: must be at least 0"),
        ({"objective__query_weight": 0.0}, ConfigError, "query_weight = 0.0: must be positive"),
        ({"model__query_dim": 8}, ConfigError, "query_dim = 8: .*vectors of 16 numbers .*encoder word"),
    ],
)
def test_what_cannot_be_is_refused(linked, one_device, tmp_path, fields, error, says):
    with pytest.raises(error, match=says):
        train(config_of(linked, **fields), tmp_path / "run", one_device)


def test_parts_of_a_mixture_need_the_same_entries(linked, one_device, tmp_path):
    other = small.write_dataset(tmp_path / "other")
    link(other, seed=1)
    config = config_of(linked, train__steps=5)
    config.dataset.mixture = ((linked, 1.0), (other, 1.0))
    with pytest.raises(
        DataError, match=r"other of the mixture are linked to different entries; link them together"
    ):
        train(config, tmp_path / "run", one_device)
    link(other)
    train(config, tmp_path / "run", one_device)
    assert all(line["n_queries"] > 0 for line in read_metrics(tmp_path / "run") if line["split"] == "train")


def test_a_dataset_without_links_is_refused(dataset, one_device, tmp_path):
    with pytest.raises(
        DataError, match="its facts are not linked to the entries of an index; write them with `lacy index"
    ):
        train(config_of(dataset), tmp_path / "run", one_device)
