"""Small datasets with known content, written without corpus, tokenizer or labeller."""

from __future__ import annotations

import pathlib

import numpy as np
from etils import epath

from lacy_jax.config import get_default_config
from lacy_jax.dataset.metadata import Metadata, SplitCounts
from lacy_jax.dataset.records import Record
from lacy_jax.dataset.source import shard_name
from lacy_jax.dataset.writer import ShardWriter, finish, merge_counts
from lacy_jax.run_files import TOKENIZER_FILE

VOCAB = 500
BOS, EOS, PAD = 1, 2, 3


def make_records(count: int, seed: int = 0, longest: int = 60, shortest: int = 2) -> list[Record]:
    """Random documents; some of one or two tokens, some far longer than a row."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        n = int(rng.integers(shortest, longest))
        tokens = rng.integers(4, VOCAB, n).astype(np.int32)
        tokens[0], tokens[-1] = BOS, EOS
        factual = rng.random(n) < 0.3
        labels = {"factual": factual, "nongrammatical": ~factual & (rng.random(n) < 0.2)}
        records.append(Record(tokens, labels, f"doc{seed}.{i}", f"title {i}"))
    return records


def write_dataset(
    path: pathlib.Path, splits: dict[str, list[Record]], shards: int = 3, tokenizer_hash: str = "t0"
) -> str:
    """Write `splits` in `shards` shards each; returns the path as text."""
    path.mkdir(parents=True, exist_ok=True)
    counts, lengths = {}, {}
    for split, records in splits.items():
        parts: list[SplitCounts] = []
        chunks = [c for c in np.array_split(np.arange(len(records)), shards) if len(c)]
        for shard, chunk in enumerate(chunks):
            writer = ShardWriter(epath.Path(path) / shard_name(split, shard, len(chunks)), VOCAB)
            with writer:
                for i in chunk:
                    writer.write(records[i])
            parts.append(writer.counts())
        counts[split] = merge_counts(parts)
        lengths[split] = np.array([len(r.tokens) for r in records])
    (path / TOKENIZER_FILE).write_bytes(tokenizer_hash.encode())
    finish(path, Metadata(tokenizer_hash, VOCAB, PAD, "fake", "1", "fake", f"f{path.name}", counts), lengths)
    return str(path)


def make_config(path: str, **inputs: object):
    """Default config with `dataset.path` and overrides of `input.*`."""
    config = get_default_config()
    config.dataset.path = path
    config.input.seq_len, config.input.batch_size = 16, 4
    config.input.threads, config.input.prefetch = 2, 2
    for name, value in inputs.items():
        config.input[name] = value
    return config
