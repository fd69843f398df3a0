"""Fitting the weights of the tagger: the network of `network.py`, written in JAX and trained with Adam.

spaCy could train the network itself, but XLA is several times faster on a CPU, mostly because each distinct word is
embedded once per batch however often it occurs. The weights are then written into a plain spaCy pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from lacy_jax.labels.tagger.network import Shape, Weights

_BUCKET = 512
"""Distinct words of a batch are padded to a multiple of this, so that few programs are compiled."""


@dataclasses.dataclass(frozen=True)
class Words:
    """Tagged documents as arrays.

    Attributes:
      rows: int32 [words, features * 4], table rows of each distinct word (`network.hash_rows`).
      ids: int32 [n], the distinct word of each token, all documents end to end.
      classes: int32 [n].
      lengths: int64 [documents].
    """

    rows: Int[np.ndarray, "words rows"]
    ids: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " documents"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Training options; the shipped weights were made with the defaults."""

    epochs: int = 3
    batch: int = 4096
    learning_rate: float = 3e-3
    warmup: int = 100
    dropout: float = 0.1
    word_dropout: float = 0.05
    seed: int = 0


def fit(
    words: Words,
    shape: Shape,
    options: Options,
    report: Callable[[int, int, float], None],
    begin: Weights | None = None,
) -> Weights:
    """Weights that predict `words.classes`; deterministic for the same input on the same machine.

    Args:
      begin: the weights to begin with; None = random ones.
      report: called after each step with (step, steps, loss).
    """
    per_epoch = int(words.lengths.sum() + shape.depth * (len(words.lengths) + 1)) // options.batch
    steps = max(per_epoch, 1) * options.epochs
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, min(options.warmup, steps // 10 + 1), steps + 1
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    weights = jax.tree.map(jnp.asarray, initial(shape, options.seed) if begin is None else begin)
    state = optimiser.init(weights)

    @jax.jit
    def step(weights, state, key, rows, inverse, classes):
        loss, gradient = jax.value_and_grad(_loss)(weights, shape, options, key, rows, inverse, classes)
        updates, state = optimiser.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    key = jax.random.key(options.seed)
    for number, (rows, inverse, classes) in enumerate(_batches(words, shape, options, steps)):
        weights, state, loss = step(weights, state, jax.random.fold_in(key, number), rows, inverse, classes)
        report(number + 1, steps, float(loss))
    return jax.tree.map(np.asarray, weights)


def initial(shape: Shape, seed: int) -> Weights:
    """Random initial weights, drawn layer by layer as thinc does."""
    rng = np.random.default_rng(seed)

    def maxout(inputs: int, pieces: int) -> dict[str, np.ndarray]:
        scale = np.sqrt(6.0 / (inputs + shape.width))
        return {
            "W": rng.uniform(-scale, scale, (shape.width * pieces, inputs)).astype(np.float32),
            "b": np.zeros(shape.width * pieces, np.float32),
            "G": np.ones(shape.width, np.float32),
            "B": np.zeros(shape.width, np.float32),
        }

    return {
        "table": rng.uniform(-0.1, 0.1, (sum(shape.rows), shape.width)).astype(np.float32),
        "embed": maxout(len(shape.rows) * shape.width, shape.embed_pieces),
        "layers": [maxout(3 * shape.width, shape.pieces) for _ in range(shape.depth)],
        "out": {
            "W": np.zeros((shape.classes, shape.width), np.float32),
            "b": np.zeros(shape.classes, np.float32),
        },
    }


def _batches(words: Words, shape: Shape, options: Options, steps: int) -> Iterator[tuple[np.ndarray, ...]]:
    """(rows [U, features * 4], inverse [batch], classes [batch]); inverse and class are -1 between two documents."""
    rng = np.random.default_rng(options.seed)
    begins = np.cumsum(words.lengths) - words.lengths
    gap = np.full(shape.depth, -1, np.int64)
    left = np.zeros(0, np.int64)
    made = 0
    while True:
        parts = [left]
        for document in rng.permutation(len(words.lengths)):
            parts += [gap, np.arange(begins[document], begins[document] + words.lengths[document])]
        stream = np.concatenate(parts)
        for at in range(0, len(stream) - options.batch + 1, options.batch):
            tokens = stream[at : at + options.batch]
            ids = np.where(tokens < 0, -1, words.ids[tokens])
            distinct, inverse = np.unique(ids, return_inverse=True)
            size = -(-len(distinct) // _BUCKET) * _BUCKET
            rows = np.zeros((size, words.rows.shape[1]), np.int32)
            rows[: len(distinct)] = words.rows[distinct]
            gone = tokens < 0
            yield rows, np.where(gone, -1, inverse), np.where(gone, -1, words.classes[tokens])
            made += 1
            if made == steps:
                return
        left = stream[len(stream) // options.batch * options.batch :]


def _loss(
    weights: Weights,
    shape: Shape,
    options: Options,
    key: Array,
    rows: Int[Array, "U rows"],
    inverse: Int[Array, " n"],
    classes: Int[Array, " n"],
) -> Float[Array, ""]:
    """Mean cross-entropy over words, with dropout."""
    keys = iter(jax.random.split(key, shape.depth + 2))
    found = weights["table"][rows.reshape(len(rows), len(shape.rows), 4)].sum(2)
    # Sometimes hide the word itself, so that the model learns to recognise unseen names by their form.
    seen = jax.random.bernoulli(next(keys), 1 - options.word_dropout, (len(rows), 1))
    found = found.at[:, 0].multiply(seen)
    embedded = _maxout(weights["embed"], found.reshape(len(rows), -1), shape.embed_pieces)
    embedded = _drop(next(keys), embedded, options.dropout)
    x = jnp.where((inverse >= 0)[:, None], embedded[inverse], 0.0)
    for layer in weights["layers"]:
        x = x + _drop(next(keys), _maxout(layer, _windows(x), shape.pieces), options.dropout)
    logits = x @ weights["out"]["W"].T + weights["out"]["b"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(classes, 0))
    valid: Bool[Array, " n"] = classes >= 0
    return jnp.sum(losses * valid) / jnp.sum(valid)


def _windows(x: Float[Array, "n W"]) -> Float[Array, "n 3W"]:
    nothing = jnp.zeros_like(x[:1])
    return jnp.concatenate([jnp.concatenate([nothing, x[:-1]]), x, jnp.concatenate([x[1:], nothing])], 1)


def _maxout(layer: dict[str, Array], x: Float[Array, "n I"], pieces: int) -> Float[Array, "n W"]:
    y = (x @ layer["W"].T + layer["b"]).reshape(len(x), -1, pieces).max(-1)
    centred = y - y.mean(1, keepdims=True)
    variance = jnp.square(centred).mean(1, keepdims=True) + 1e-8
    return centred * jax.lax.rsqrt(variance) * layer["G"] + layer["B"]


def _drop(key: Array, x: Array, rate: float) -> Array:
    return x * jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)
