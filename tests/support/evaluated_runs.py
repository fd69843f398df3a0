"""Runs of random parameters on small datasets of the world, and their scores by plain logits."""

from __future__ import annotations

import shutil

import jax
import numpy as np
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


@nnx.jit
def plain_logits(model, tokens, positions, segment_ids):
    return model.logits(model(tokens, positions, segment_ids))


def naive_rows(folder, policy):
    """Per batch: nll, c, factual of every valid target of the validation split by plain logits."""
    run = load_run(folder / policy)
    config = evaluation_config(policy, folder / "dataset")
    rows = []
    for batch in make_input(config, split="valid", epochs=1, drop_remainder=False):
        logits = plain_logits(run.model, batch.tokens, batch.positions, batch.segment_ids)
        z, c = (np.asarray(a, np.float64) for a in logits)
        log_p = z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
        nll = -np.take_along_axis(log_p, np.asarray(batch.targets)[..., None], -1)[..., 0]
        valid = np.asarray(batch.weights)
        rows.append((nll[valid], c[valid], np.asarray(batch.labels["factual"])[valid]))
    return rows
