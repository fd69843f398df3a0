"""A small world, a tokenizer trained on it, and untrained models: enough to decode with, quick to compile."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import CONTEXT, make_model, make_tokenizer
from flax import nnx

from lacy_jax.corpus import World
from lacy_jax.models import Transformer
from lacy_jax.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def world() -> World:
    return World(people=60, seed=3)


@pytest.fixture(scope="session")
def tokenizer(world) -> Tokenizer:
    return make_tokenizer(world, 500)


@pytest.fixture(scope="session")
def other_tokenizer() -> Tokenizer:
    return make_tokenizer(World(people=60, seed=8), 500)


@pytest.fixture(scope="session")
def model(tokenizer) -> Transformer:
    return make_model(tokenizer.vocab_size)


@pytest.fixture(scope="session")
def full_forward():
    """(z [T, V], c [T]) of one text by the training-time forward pass: no cache, no batch."""
    compiled = nnx.jit(
        lambda model, tokens: model.logits(model(tokens, jnp.arange(tokens.shape[1])[None], tokens * 0 + 1))
    )

    def run(model: Transformer, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros(
            (1, CONTEXT), np.int32
        )  # One shape, one compilation; causal, so the rest does not matter.
        padded[0, : len(tokens)] = tokens
        z, c = compiled(model, jnp.asarray(padded))
        return np.asarray(z[0, : len(tokens)]), np.asarray(c[0, : len(tokens)])

    return run
