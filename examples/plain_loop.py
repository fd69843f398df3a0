"""Delegation in a training loop of one's own: Flax and optax, bytes as tokens, and of lacy_jax labels and loss alone.

    python examples/plain_loop.py TEXT.txt --steps=300     # a line is a document; without a file, embedded biographies

`RuleLabeller` says which characters state a fact, `align` turns that into one bit per token, and
`delegated_cross_entropy` takes hidden states, the output head, one vector for CALL, targets and bits: 15 % of the targets,
the hardest of the factual ones, are trained to be CALL (arXiv:2602.12005 §4). Nothing else is imported: no Orbax, no Grain.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lacy_jax.corpus import Document, World
from lacy_jax.labels import RuleLabeller, align
from lacy_jax.objectives import delegated_cross_entropy

VOCABULARY, WIDTH, ROWS, LENGTH = 256, 128, 16, 128


def bytes_and_bits(line: str) -> tuple[np.ndarray, np.ndarray]:
    """A document as bytes, and for each whether it belongs to a fact that is stated for the first time."""
    characters = np.repeat(np.arange(len(line)), [len(c.encode()) for c in line])
    factual = align(RuleLabeller().label(Document("", line)).factual, characters, characters + 1, line)
    return np.frombuffer(f"{line}\n".encode(), np.uint8), np.append(factual, False)


class Model(nnx.Module):
    """A recurrent network; whatever gives hidden states [B, T, D] will do."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layer = nnx.RNN(nnx.GRUCell(WIDTH, WIDTH, rngs=rngs))
        self.call = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.layer(self.embed(tokens))


@nnx.jit
def train_step(model: Model, optimizer: nnx.Optimizer, tokens: jax.Array, factual: jax.Array):
    """One update on tokens [B, T+1]; the metrics of the delegated loss."""

    def loss(model: Model):
        return delegated_cross_entropy(
            model(tokens[:, :-1]), model.embed.embedding[...], model.call[...], tokens[:, 1:],
            jnp.ones(tokens[:, 1:].shape, bool), {"factual": factual[:, 1:]}, policy="lacy", call_rate=0.15,
        )  # fmt: skip

    gradients, metrics = nnx.grad(loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    return metrics


def main() -> None:
    """Train, and print a line every fifty steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", nargs="?", help="UTF-8, a document a line")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    world = World(300)
    if options.text:
        lines = pathlib.Path(options.text).read_text().splitlines()
    else:
        lines = [world.text(person).text for person in range(300)]
    documents = [bytes_and_bits(line.strip()) for line in lines if line.strip()]
    tokens, factual = (np.concatenate(arrays) for arrays in zip(*documents))

    model, random = Model(nnx.Rngs(0)), np.random.default_rng(0)
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    for step in range(1, options.steps + 1):
        rows = random.integers(0, len(tokens) - LENGTH, ROWS)[:, None] + np.arange(LENGTH + 1)
        metrics = train_step(model, optimizer, tokens[rows].astype(np.int32), factual[rows])
        if step == 1 or step % 50 == 0:
            print(f"step {step}: {', '.join(f'{name} {float(getattr(metrics, name)):.3f}' for name in ('loss', 'nll_learned', 'nll_called', 'realised_call_rate', 'factual_rate'))}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
