"""A small world, a tokenizer trained on it, and untrained models: enough to decode with, quick to compile."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import CONTEXT, make_model, make_tokenizer
from flax import nnx
from index_small import FACTS, PASSAGE, SPAN
from word_encoder import WordEncoder

from lacy_jax.cascade import index_writer
from lacy_jax.cascade.encoders import ENCODERS, EncoderKind
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


@pytest.fixture(scope="session")
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def index_folder(tmp_path, encoder) -> pathlib.Path:
    """A dense index of `index_small`."""
    index_writer.build(tmp_path / "index", [*FACTS, SPAN, PASSAGE], encoder)
    return tmp_path / "index"


@pytest.fixture
def word(monkeypatch, encoder):
    """The encoder of words as an entry of the registry."""
    list(ENCODERS)
    monkeypatch.setitem(ENCODERS._entries, "word", EncoderKind("word", "of a test", lambda: encoder))
