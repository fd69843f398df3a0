"""A small real dataset (real tokenizer, real shards) and a config that trains on it in seconds."""

from __future__ import annotations

import functools
import pathlib

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lacy_jax.config import get_default_config
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.metadata import Metadata, SplitCounts
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import shard_name
from lacy_jax.dataset.writer import ShardWriter, finish
from lacy_jax.models import ModelConfig, resolve_model_config
from lacy_jax.tokenizer import Tokenizer, train_tokenizer
from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition, TrainState, init_state, optimizer_for, state_shardings
from lacy_jax.training.step import StepMetrics, make_train_step

_NAMES = ("Ada", "Bela", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana")
_TOWNS = ("Aarhus", "Bergen", "Cadiz", "Delft", "Essen", "Fulda", "Genoa", "Hof")
VOCAB = 304


def sentences(count: int, seed: int = 0) -> list[tuple[str, tuple[int, int]]]:
    """Short texts, each with the character span of its one fact."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        start = f"{rng.choice(_NAMES)} {rng.choice(_NAMES)} was born in "
        fact = f"{rng.choice(_TOWNS)} in {rng.integers(1800, 2000)}"
        found.append(
            (start + fact + " and lived there for a long time.", (len(start), len(start) + len(fact)))
        )
    return found


@functools.cache
def tokenizer(extra: str = "") -> Tokenizer:
    """A tokenizer of VOCAB pieces; another `extra` text makes another tokenizer."""
    config = get_default_config().tokenizer
    with config.unlocked():
        config.vocab_size = VOCAB
    return Tokenizer.from_bytes(train_tokenizer([text for text, _ in sentences(200)] + [extra] * 50, config))


def write_dataset(
    path: pathlib.Path, documents: int = 80, valid: int = 20, factual: bool = True, extra: str = ""
) -> str:
    """Write the dataset; returns its path as text."""
    path.mkdir(parents=True, exist_ok=True)
    pieces = tokenizer(extra)
    counts: dict[str, SplitCounts] = {}
    lengths: dict[str, list[int]] = {"train": [], "valid": []}
    for split, count, seed in (("train", documents, 0), ("valid", valid, 1)):
        writer = ShardWriter(epath.Path(path) / shard_name(split, 0, 1), VOCAB)
        with writer:
            for i, (text, (a, b)) in enumerate(sentences(count, seed)):
                ids, starts, ends = pieces.encode_with_offsets(text)
                facts = (starts < b) & (ends > a) & factual
                tokens = np.concatenate(([pieces.bos_id], ids, [pieces.eos_id])).astype(np.int32)
                labels = {
                    "factual": np.concatenate(([False], facts, [False])),
                    "nongrammatical": np.zeros(len(tokens), bool),
                }
                lengths[split].append(len(tokens))
                writer.write(Record(tokens, labels, f"{split}{i}", " ".join(text.split()[:2])))
        counts[split] = writer.counts()
    pieces.save(path / "tokenizer.model")
    metadata = Metadata(pieces.hash, VOCAB, pieces.pad_id, "fake", "1", "fake", "f0", counts)
    finish(path, metadata, {split: np.array(n) for split, n in lengths.items()})
    return str(path)


def make_config(dataset: str, **overrides: object) -> ml_collections.ConfigDict:
    """A 60,000-parameter model on `dataset`; `overrides` by name with "__" for the dot."""
    config = get_default_config()
    config.dataset.path = dataset
    config.input.seq_len, config.input.batch_size = 32, 8
    config.input.threads, config.input.prefetch = 1, 2
    config.model.family = "llama"  # Fewer parameters than gpt2, hence fewer kernels to compile.
    config.model.d_model, config.model.n_layers, config.model.n_heads = 64, 2, 2
    config.train.steps, config.train.log_every, config.train.eval_every = 12, 1, 6
    config.train.eval_batches = 2
    config.checkpoint.every = 4
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-3, 4
    config.optimizer.schedule = "constant"  # Else each number of steps is another program to compile.
    config.metrics.tensorboard = False
    config.metrics.peak_flops = 1e11
    for name, value in overrides.items():
        group, field = name.split("__")
        config[group][field] = value
    return config


def random_batch(rows: int = 8, length: int = 32, seed: int = 0) -> Batch:
    """A batch of random ids with ragged padding, two segments per row, and about a third of the targets factual."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, VOCAB, (rows, length + 1)).astype(np.int32)
    filled = np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))
    segments = np.where(filled, 1 + (np.arange(length) >= length // 3), 0).astype(np.int32)
    positions = np.where(np.arange(length) >= length // 3, np.arange(length) - length // 3, np.arange(length))
    weights = filled & (np.roll(segments, -1, axis=1) == segments)
    weights[:, -1] &= filled[:, -1]
    return Batch(
        tokens=np.where(filled, tokens[:, :-1], 0),
        targets=np.where(weights, tokens[:, 1:], 0),
        positions=np.broadcast_to(positions, (rows, length)).astype(np.int32),
        segment_ids=segments,
        weights=weights,
        labels={
            "factual": weights & (rng.random((rows, length)) < 0.33),
            "nongrammatical": np.zeros((rows, length), bool),
        },
    )


def model_config(config: ml_collections.ConfigDict) -> ModelConfig:
    """Dimensions of the model of `config` on VOCAB pieces."""
    return resolve_model_config(config.model, VOCAB, config.input.seq_len)


def definition(config: ml_collections.ConfigDict) -> ModelDefinition:
    """The model of `config` on VOCAB pieces."""
    return ModelDefinition(model_config(config), config.train.trainable)


def mesh(data: int, fsdp: int, tensor: int, sequence: int = 1) -> Mesh:
    """A mesh of as many devices, or of all 8 with -1."""
    config = get_default_config()
    config.mesh.update({"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor})
    count = data * fsdp * sequence * tensor if data > 0 else 8
    return sharding.make_mesh(config.mesh, jax.devices()[:count])


def run_step(
    config: ml_collections.ConfigDict, mesh: Mesh, batch: Batch, steps: int = 1, seed: int = 0
) -> tuple[TrainState, StepMetrics]:
    """Fresh state, then `steps` steps on the same batch; returns state and the last metrics."""
    model = definition(config)
    tx = optimizer_for(config, model)
    over_data = config.train.shard_optimizer
    state = init_state(model, tx, mesh, seed, over_data)
    step = make_train_step(config, model, tx, mesh, state_shardings(model, tx, mesh, over_data))
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, sharding.put_batch(batch, mesh), None)
    return state, jax.device_get(metrics)
