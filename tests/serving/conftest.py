"""A small world, a tokenizer trained on it and an untrained model: enough to serve."""

from __future__ import annotations

import pytest
from cascade_fakes import make_model, make_tokenizer

from lacy_jax.corpus import World


@pytest.fixture(scope="session")
def world():
    return World(people=60, seed=3)


@pytest.fixture(scope="session")
def tokenizer(world):
    return make_tokenizer(world, 500)


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(tokenizer.vocab_size)
