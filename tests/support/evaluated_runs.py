"""Runs of random parameters on small datasets of the world, and their scores by plain logits."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import scipy.special
from flax import nnx

from lacy_jax.config import get_default_config, to_json
from lacy_jax.dataset import make_input
from lacy_jax.models import resolve_model_config
from lacy_jax.training import load_run
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.state import ModelDefinition

VOCAB = 400


def evaluation_config(policy, dataset, world_seed=0):
    config = get_default_config()
    config.objective.policy = policy
    config.corpus.people, config.corpus.texts_per_person, config.corpus.world_seed = 40, 2, world_seed
    config.tokenizer.vocab_size = VOCAB
    config.dataset.path, config.dataset.valid_fraction, config.dataset.shards = str(dataset), 0.2, 1
    config.model.preset, config.model.d_model, config.model.n_layers, config.model.n_heads = "tiny", 16, 1, 2
    config.input.seq_len, config.input.batch_size, config.input.threads, config.input.prefetch = 64, 8, 1, 1
    return config


def save_run(folder, config, seed):
    """A run directory with a checkpoint of random parameters, large enough that nothing is near a tie."""
    definition = ModelDefinition(resolve_model_config(config.model, VOCAB, config.input.seq_len))
    leaves, structure = jax.tree.flatten(definition.abstract_params)
    rng = np.random.default_rng(seed)
    params = structure.unflatten([jax.numpy.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    shutil.copy(f"{config.dataset.path}/tokenizer.model", folder)
    with Checkpointer(folder, config) as checkpointer:
        checkpointer.save(1, params, {"count": jax.numpy.zeros(())}, {})


_hidden = nnx.jit(lambda model, *arrays: model(*arrays))


def plain_statistics(model, tokens, targets, positions=None, segment_ids=None):
    """Statistics [B, T] of a batch in float64 from whole logits; the head is rounded to the dtype the model computes in."""
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    segment_ids = np.ones_like(tokens) if segment_ids is None else segment_ids
    hidden = _hidden(model, tokens, positions, segment_ids)
    kernel = np.asarray(model.head_kernel().astype(hidden.dtype), np.float64)
    hidden = np.asarray(hidden, np.float64)
    z, c = hidden @ kernel.T, hidden @ np.asarray(model.call_vector(), np.float64)
    lse = scipy.special.logsumexp(z, axis=-1)
    log_p, ordered = z - lse[..., None], np.sort(z, axis=-1)
    return {
        "nll": -np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0],
        "lse": lse,
        "call_logit": c,
        "max_z": ordered[..., -1],
        "second_z": ordered[..., -2],
        "entropy": -np.sum(np.exp(log_p) * log_p, axis=-1),
        "top1": z.argmax(-1),
    }


def plain_batch(model, batch):
    """`plain_statistics` of a `Batch`."""
    return plain_statistics(model, batch.tokens, batch.targets, batch.positions, batch.segment_ids)


def plain_document(model, ids, context):
    """Statistics [n - 1] of a document of n tokens, window by window of `context` tokens."""
    parts = [
        plain_statistics(
            model, ids[None, start : start + context], ids[None, start + 1 : start + context + 1]
        )
        if start + context < len(ids)
        else plain_statistics(model, ids[None, start:-1], ids[None, start + 1 :])
        for start in range(0, len(ids) - 1, context)
    ]
    return {name: np.concatenate([part[name][0] for part in parts]) for name in parts[0]}


def naive_rows(folder, policy):
    """Per batch: nll, c, factual of every valid target of the validation split by plain logits."""
    run = load_run(folder / policy)
    config = evaluation_config(policy, folder / "dataset")
    rows = []
    for batch in make_input(config, split="valid", epochs=1, drop_remainder=False):
        found, valid = plain_batch(run.model, batch), np.asarray(batch.weights)
        rows.append(
            (found["nll"][valid], found["call_logit"][valid], np.asarray(batch.labels["factual"])[valid])
        )
    return rows
