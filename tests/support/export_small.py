"""Small random models and tokenizers for them, without training."""

from __future__ import annotations

import functools

import jax
import numpy as np

from lacy_jax.config import get_default_config
from lacy_jax.models import resolve_model_config
from lacy_jax.tokenizer import Tokenizer, train_tokenizer
from lacy_jax.training.state import ModelDefinition

TEXTS = [
    f"{name} was born in {town} on {day} May {1800 + day}, wrote {day} books and died at home."
    for day in range(1, 29)
    for name in ("Ada Byron", "Émile Zola", "Carl Gauss")
    for town in ("Paris", "London", "Göttingen")
]


@functools.cache
def tokenizer(byte_fallback: bool = True, normalization: str = "identity") -> Tokenizer:
    """A small tokenizer of our own making."""
    config = get_default_config().tokenizer
    with config.unlocked():
        config.vocab_size, config.byte_fallback = (320 if byte_fallback else 60), byte_fallback
        config.normalization = normalization
    return Tokenizer.from_bytes(train_tokenizer(TEXTS, config))


def make_config(**model: object):
    """A run config of a tiny model; `model` overrides fields of its model group."""
    config = get_default_config()
    config.model.d_model, config.model.n_layers, config.model.n_heads = 32, 2, 4
    config.model.d_ff, config.model.max_seq_len, config.input.seq_len = 48, 64, 64
    config.optimizer.learning_rate = 1e-3
    for name, value in model.items():
        config.model[name] = value
    return config


def random_params(config, vocab_size: int, seed: int = 0):
    """Parameters off their trivial start: norms near 1, all else normal of std 0.2."""
    definition = ModelDefinition(resolve_model_config(config.model, vocab_size, config.input.seq_len))
    random = np.random.default_rng(seed)

    def value(path, leaf):
        centre = 1.0 if any(name in jax.tree_util.keystr(path) for name in ("scale", "_norm")) else 0.0
        return (centre + 0.2 * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, definition.abstract_params)
