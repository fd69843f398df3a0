"""Small models, tokenizers, batches and partners for the tests of this folder."""

from __future__ import annotations

import concurrent.futures

import jax
import numpy as np
from flax import nnx

from lacy_jax.cascade import Partner
from lacy_jax.config import get_default_config
from lacy_jax.corpus import World
from lacy_jax.dataset.batch import Batch
from lacy_jax.models import Transformer, resolve_model_config
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 128


def make_tokenizer(world: World, vocab_size: int) -> Tokenizer:
    config = get_default_config()
    config.tokenizer.vocab_size = vocab_size
    return Tokenizer.from_bytes(train_tokenizer((world.text(i).text for i in range(60)), config.tokenizer))


def make_model(
    vocab_size: int,
    family: str = "llama",
    seed: int = 0,
    context: int = CONTEXT,
    dtype: str = "float32",
    query_dim: int = 0,
) -> Transformer:
    """An untrained model whose logits and CALL logits differ from token to token."""
    config = get_default_config()
    sizes = {
        "family": family,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "d_ff": 64,
        "tie_head": False,
        "max_seq_len": context,
        "dtype": dtype,
        "query_dim": query_dim,
    }
    config.model.update(sizes)
    model = Transformer(resolve_model_config(config.model, vocab_size, context), rngs=nnx.Rngs(seed))
    model.call[...] = jax.random.normal(jax.random.key(seed), (32,))
    # Loud embeddings, attention and head: what comes next depends on the whole text, and greedy text does not loop.
    loud = (model.embedding, 50), (model.head, 30), (model.blocks.value, 10), (model.blocks.attention_out, 10)
    for parameter, factor in loud:
        parameter[...] = factor * parameter[...]
    return model


def obsessed(vocab_size: int, *favourites: int) -> Transformer:
    """A model that wants the same piece everywhere: the first of `favourites`, or the next that is allowed."""
    model = make_model(vocab_size, family="gpt2", context=512)
    model.final_norm.scale[...] = np.zeros(model.final_norm.scale.shape, np.float32)
    model.final_norm.bias[...] = np.ones(model.final_norm.bias.shape, np.float32)
    head = np.zeros(model.head.shape, np.float32)
    for rank, token in enumerate(favourites):
        head[token] = len(favourites) - rank
    model.head[...] = head
    return model


def make_batch(tokens, weights):
    """A batch of whole rows; `weights` says which positions are valid."""
    tokens = np.asarray(tokens, np.int32)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    fields = {
        "tokens": tokens,
        "targets": tokens,
        "positions": positions,
        "segment_ids": np.ones_like(tokens),
    }
    labels = {"factual": tokens > 0, "nongrammatical": tokens < 0}
    return Batch(**fields, weights=np.asarray(weights, np.float32), labels=labels)


class Scripted(Partner):
    """A partner that answers from a list in turn (raising what is an exception) and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked, self.calls = answers, [], 0

    def complete(self, texts):
        answer = self.answers[self.calls % len(self.answers)]
        self.calls += 1
        if isinstance(answer, Exception):
            raise answer
        self.asked += texts
        return [answer] * len(texts)


class Asked(Scripted):
    """One that is asked by a query head; keeps the queries beside the texts."""

    by_query = True

    def __init__(self, *answers):
        super().__init__(*answers)
        self.queries = []

    def complete_by_query(self, texts, queries):
        self.queries += list(queries)
        return self.complete(list(texts))


def answers_meanwhile(edits, ask):
    """What `ask` gives, again and again, while `edits` runs in another thread, whose failure is raised."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        editing = pool.submit(edits)
        said = [ask()]
        while not editing.done():
            said.append(ask())
        editing.result()
    return said
